/**
 * What the layers for small tests are made of: one instance on memory stores that can be looked into and made to fail,
 * and another one of the same app, elsewhere, that a test can speak through.
 *
 * Each primitive has a module of the same shape: {@link TestCache}, {@link TestPubSub}, {@link TestSyncMessage},
 * {@link TestEventQueue} and {@link TestLock}. `layerTest` is the primitive, `fail` and `recover` break it and mend it,
 * and the others tell what it did. Merged, they are one instance; {@link layerTest} is all five.
 *
 * ```ts
 * it.effect("greets", () =>
 *   Effect.gen(function* () {
 *     yield* greet("Ada")
 *     assert.deepStrictEqual(yield* TestPubSub.published(Greeting), [{ name: "Ada" }])
 *   }).pipe(Effect.provide(TestPubSub.layerTest))
 * )
 * ```
 *
 * Time is `TestClock`'s.
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Cohort from "../layers/Cohort.ts"
import * as MemoryCacheStore from "../layers/memory/MemoryCacheStore.ts"
import * as MemoryEventQueueStore from "../layers/memory/MemoryEventQueueStore.ts"
import * as MemoryHub from "../layers/memory/MemoryHub.ts"
import * as MemoryLockStore from "../layers/memory/MemoryLockStore.ts"
import * as MemoryPubSubTransport from "../layers/memory/MemoryPubSubTransport.ts"
import { CacheStore } from "../services/CacheStore.ts"
import { EventQueueStore } from "../services/EventQueueStore.ts"
import * as Instance from "../services/Instance.ts"
import * as Validate from "../services/internal/validate.ts"
import { LockStore } from "../services/LockStore.ts"
import type { Payload } from "../services/Payload.ts"
import { PubSubTransport } from "../services/PubSubTransport.ts"
import { type Call, faulty, type Rule } from "./internal/faulty.ts"

/**
 * Which operations fail, and how.
 *
 * @since 0.2.0
 */
export interface FailOptions {
  /** Only what is about this channel, cache or lock key. Default: all of the primitive. */
  readonly on?: string | { readonly channel: string } | undefined
  /** `before` it takes effect, or `after`, when the caller cannot know. Default `"before"`. */
  readonly when?: "before" | "after" | undefined
  /** How many operations fail; `Infinity` until `recover`. Default 1. */
  readonly times?: number | undefined
}

/**
 * What the test layers share. Only they use its members.
 *
 * @since 0.2.0
 */
export class TestStores extends Context.Service<
  TestStores,
  {
    readonly hub: MemoryHub.MemoryHub["Service"]
    readonly rules: Array<Rule>
    /** What has left this instance, in order. */
    readonly published: ReadonlyArray<{ readonly address: string; readonly payload: Payload }>
    /** Another instance of the app. */
    readonly elsewhere: Context.Context<Cohort.Services>
  }
>()("cohort/testing/TestStores") {}

const app = "test"
const id = "here"

/** Where a channel, or what is called by that name, is in the stores. */
export const address = (kind: string, name: string): string => Validate.address(app, kind, name)

const nameOf = (address: string): string =>
  address.slice(address.lastIndexOf(":") + 1).replace(/%25|%3A/g, (code) => (code === "%25" ? "%" : ":"))

/** Makes the next operations of a primitive fail with `Unavailable`. */
export const fail = (
  store: Call["store"],
  operation: string,
  options: FailOptions = {}
): Effect.Effect<void, never, TestStores> =>
  TestStores.useSync(({ rules }) => {
    const { on, times = 1, when = "before" } = options
    rules.push({
      ...{ store, when, left: times },
      operation: operation === "any" ? undefined : operation,
      on: typeof on === "object" ? on.channel : on
    })
  })

/** Ends what {@link fail} began for a primitive. */
export const recover = (store: Call["store"]): Effect.Effect<void, never, TestStores> =>
  TestStores.useSync(({ rules }) => {
    for (const rule of rules.filter((rule) => rule.store === store)) rules.splice(rules.indexOf(rule), 1)
  })

const make = Effect.gen(function* () {
  const hub = yield* MemoryHub.make
  const rules: Array<Rule> = []
  const published: Array<{ readonly address: string; readonly payload: Payload }> = []
  const here = yield* Layer.build(Instance.layer({ app, id }))
  const stores = yield* Layer.build(
    Layer.mergeAll(
      MemoryCacheStore.layer,
      MemoryEventQueueStore.layer,
      MemoryLockStore.layer,
      MemoryPubSubTransport.layer
    ).pipe(Layer.fresh, Layer.provide([Layer.succeed(MemoryHub.MemoryHub, hub), Layer.succeedContext(here)]))
  )
  const elsewhere = yield* Layer.build(Layer.fresh(Cohort.layerMemory({ app, id: "elsewhere", hub })))

  const cache = Context.get(stores, CacheStore)
  const lock = Context.get(stores, LockStore)
  const queue = Context.get(stores, EventQueueStore)
  const transport = Context.get(stores, PubSubTransport)
  const recording: PubSubTransport["Service"] = {
    ...transport,
    publish: (address, message) => {
      published.push({ address, payload: message.payload })
      return transport.publish(address, message)
    }
  }
  // Waiting for a lock by callback is not an operation of its own: without it, all go through `acquire`.
  const { request: _, ...lockOperations } = lock

  const inQueue =
    (channel: string) =>
    (operation: string): Call => ({
      ...{ store: "queue", on: nameOf(channel) },
      operation: operation === "worker" ? "subscribe" : operation
    })
  return Context.mergeAll(
    here,
    Context.make(TestStores, { hub, rules, published, elsewhere }),
    Context.make(
      CacheStore,
      faulty(cache, rules, (operation, [space]) => ({ store: "cache", operation, on: nameOf(space) }))
    ),
    Context.make(
      LockStore,
      faulty(lockOperations, rules, (operation, [first, key]) => ({
        ...{ store: "lock", on: typeof first === "string" ? key : first.key },
        operation: operation === "tryAcquire" ? "acquire" : operation
      }))
    ),
    Context.make(
      EventQueueStore,
      faulty(
        queue,
        rules,
        (operation, [channel]) => inQueue(channel)(operation),
        (_operation, [channel], worker) => faulty(worker, rules, inQueue(channel))
      )
    ),
    Context.make(
      PubSubTransport,
      faulty(recording, rules, (operation, [channel]) => {
        const kind = channel.split(":")[1]
        return { operation, on: nameOf(channel), store: kind === "topic" || kind === "sync" ? kind : "other" }
      })
    )
  )
})

/**
 * One instance's stores in memory, its `Instance`, and what tests see and break.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<
  TestStores | CacheStore | EventQueueStore | LockStore | PubSubTransport | Instance.Instance
> = Layer.orDie(Layer.effectContext(make))

/**
 * The five primitives of one instance, for tests that look into them or make them fail.
 *
 * @since 0.2.0
 */
export const layerTest: Layer.Layer<Cohort.Services | TestStores> = Layer.orDie(Layer.provideMerge(Cohort.layer, layer))
