/**
 * Two releases in one cluster. Release 0.1 knew no envelopes: what it sent were bare payloads. What a later release
 * sends is written here by hand, at the port, as it would be on the wire; so is the later release's worker.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { EventQueue, EventQueueStore, Instance, Job, Payload, PubSub, PubSubTransport, Topic } from "../../src/index.ts"
import { MemoryEventQueueStore, MemoryHub, MemoryPubSubTransport } from "../../src/layers/memory/index.ts"
import { layerStores, RedisConnection } from "../../src/layers/redis/index.ts"
import * as RedisServer from "../servers/RedisServer.ts"

const Work = Job.make("work", Schema.Struct({ n: Schema.Number }))
const News = Topic.make("news", Schema.Struct({ n: Schema.Number }))
const memory = Layer.mergeAll(MemoryEventQueueStore.layer, MemoryPubSubTransport.layer).pipe(
  Layer.provide(MemoryHub.layer)
)
const redis = Layer.unwrap(
  Effect.map(RedisServer.sharedUrl, (url) => Layer.provide(layerStores, RedisConnection.layer({ url })))
)
const app = `upgrade-${process.pid}`
const until = (what: string, condition: () => boolean) =>
  Effect.promise(() => RedisServer.waitUntil(condition, () => `never: ${what}`, 30_000))

const suite = (name: string, stores: Layer.Layer<any, any, any>) =>
  describe(`two releases on ${name}`, () => {
    const layer = Layer.mergeAll(EventQueue.layer, PubSub.layer).pipe(
      Layer.provideMerge(stores),
      Layer.provideMerge(Instance.layer({ app, id: "this" }))
    ) as Layer.Layer<
      EventQueue.EventQueue | PubSub.PubSub | EventQueueStore.EventQueueStore | PubSubTransport.PubSubTransport
    >

    it.live("jobs and broadcasts of either are handled; what only a later one can read is left to it", () =>
      Effect.gen(function* () {
        const store = yield* EventQueueStore.EventQueueStore
        const transport = yield* PubSubTransport.PubSubTransport
        const wires = ['{"n":1}', '{"~cohort":1,"colour":"red","data":{"n":2}}', '{"~cohort":2,"body":{"n":3}}']
        const [jobs, news]: [Array<number>, Array<number>] = [[], []]
        yield* PubSub.subscribe(News, ({ n }) => Effect.sync(() => news.push(n)))
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* EventQueue.subscribe(Work, { process: ({ n }) => Effect.sync(() => jobs.push(n)) })
            for (const wire of [...wires].reverse()) {
              const payload = Payload.Payload.fromJson(wire)
              yield* transport.publish(`${app}:topic:news`, { from: "other", toSelf: false, payload })
              const job = { id: wire, isGiven: true, payload, delay: 0, timeout: 15_000, maxRetries: 0, keepId: 0 }
              yield* store.publish(`${app}:queue:work`, job)
            }
            yield* until("what this release can read is handled", () => jobs.length === 2 && news.length === 2)
          })
        )
        assert.deepStrictEqual([...jobs].sort(), [1, 2])
        assert.deepStrictEqual([...news].sort(), [1, 2])
        assert.strictEqual((yield* EventQueue.depth(Work)).dead, 0)
        const later = yield* store.worker(`${app}:queue:work`, { lease: 30_000, concurrency: 1 })
        let taken: ReadonlyArray<EventQueueStore.Delivery> = []
        while (taken.length === 0) taken = yield* Effect.flatMap(later.ready, () => later.take(1))
        assert.strictEqual(taken[0]!.attempt, 1, "giving it back did not count")
        assert.strictEqual(taken[0]!.payload.json, wires[2])
        const settlement = { delivery: taken[0]!, outcome: { _tag: "ack" } } as const
        assert.deepStrictEqual(yield* later.settle([settlement]), [true])
      }).pipe(Effect.scoped, Effect.provide(layer), Effect.orDie)
    )
  })

suite("memory", memory)
suite("redis", redis)
