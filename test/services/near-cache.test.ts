/** What is near, on a store and a broadcast that the test holds in its hands. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { Cache, CacheStore, Instance, PubSub, PubSubTransport, Reason } from "../../src/index.ts"
import { MemoryCacheStore, MemoryHub } from "../../src/layers/memory/index.ts"

/** Instances that share a store, whose messages and answers the test may hold up. */
const cluster = Effect.gen(function* () {
  const hub = yield* MemoryHub.make
  const state = {
    reads: 0,
    /** What happens to messages: delivered, lost, or refused. */
    broadcast: "works" as "works" | "lost" | "refused",
    messages: [] as Array<string>,
    /** A read that has its answer waits for this. */
    beforeAnswer: Effect.void as Effect.Effect<unknown>,
    /** A write waits for this. */
    beforeWrite: Effect.void as Effect.Effect<unknown>,
    /** Takes an entry out of the store, as if it had been evicted. */
    evict: (_key: string): Effect.Effect<unknown, Reason.Unavailable> => Effect.void
  }
  const subscribers = new Set<{
    readonly onMessage: (message: PubSubTransport.Message) => void
    readonly onGap: () => void
  }>()
  const transport = PubSubTransport.PubSubTransport.of({
    system: "test",
    publish: (_, message) =>
      Effect.suspend(() => {
        state.messages.push(message.payload.json)
        if (state.broadcast === "refused") return new Reason.Unavailable({ backend: "test", detail: "refused" })
        if (state.broadcast === "works") for (const { onMessage } of subscribers) onMessage(message)
        return Effect.yieldNow
      }),
    subscribe: (_, onMessage, onGap) =>
      Effect.asVoid(
        Effect.acquireRelease(
          Effect.sync(() => {
            const subscriber = { onMessage, onGap }
            subscribers.add(subscriber)
            return subscriber
          }),
          (subscriber) => Effect.sync(() => subscribers.delete(subscriber))
        )
      )
  })

  /** What makes a cache on an instance. */
  const instanceOf = (id: string) =>
    Effect.gen(function* () {
      const identity = Instance.layer({ app: "test", id })
      const memory = yield* Layer.build(
        MemoryCacheStore.layer.pipe(Layer.provide([Layer.succeed(MemoryHub.MemoryHub, hub), identity]))
      )
      const inner = yield* Effect.provide(CacheStore.CacheStore, memory)
      state.evict = (key) => inner.del("test:cache:numbers", [key])
      const store = CacheStore.CacheStore.of({
        ...inner,
        system: "test",
        local: false,
        set: (space, entries, ttl) =>
          Effect.andThen(
            Effect.suspend(() => state.beforeWrite),
            Effect.suspend(() => inner.set(space, entries, ttl))
          ),
        getMany: (space, keys) =>
          Effect.suspend(() => {
            state.reads += keys.length
            return Effect.flatMap(inner.getMany(space, keys), (found) => Effect.as(state.beforeAnswer, found))
          })
      })
      const services = yield* Layer.build(
        Layer.mergeAll(Cache.layer, PubSub.layer).pipe(
          Layer.provide([
            Layer.succeed(CacheStore.CacheStore, store),
            Layer.succeed(PubSubTransport.PubSubTransport, transport),
            identity
          ])
        )
      )
      return (options?: Cache.Options) =>
        Effect.provide(Cache.make("numbers", Schema.Number, { near: true, ...options }), services)
    })

  return {
    state,
    instanceOf,
    instance: (id: string, options?: Cache.Options) => Effect.flatMap(instanceOf(id), (make) => make(options)),
    gap: Effect.sync(() => {
      for (const { onGap } of subscribers) onGap()
    })
  }
})

const some = (value: number) => Option.some(value)

describe("near cache", () => {
  it.effect("a hit does not ask the store", () =>
    Effect.gen(function* () {
      const { instance, state } = yield* cluster
      const cache = yield* instance("a")
      yield* cache.set("k", 1)
      for (let i = 0; i < 10; i++) {
        assert.deepStrictEqual(yield* cache.get("k"), some(1))
        assert.strictEqual(yield* cache.wrap("k", Effect.die("hit")), 1)
        assert.strictEqual(yield* cache.wrapWithCondition("k", Effect.die("hit")), 1)
        assert.deepStrictEqual(yield* cache.mget(["k", "k"]), [some(1), some(1)])
      }
      assert.strictEqual(state.reads, 1)
      assert.deepStrictEqual(yield* cache.mget(["k", "none", "none"]), [some(1), Option.none(), Option.none()])
      assert.strictEqual(state.reads, 2)
    })
  )

  for (const [text, near, millis] of [
    ["10 seconds by default", true, 10_000],
    ["as long as it says", { ttl: "3 seconds" }, 3_000]
  ] as const) {
    it.effect(`where broadcast loses a message, the old value is read at most the near ttl: ${text}`, () =>
      Effect.gen(function* () {
        const { instance, state } = yield* cluster
        const a = yield* instance("a", { near })
        const b = yield* instance("b", { near })
        yield* a.set("k", 1)
        assert.deepStrictEqual(yield* b.get("k"), some(1))
        state.broadcast = "lost"
        yield* a.set("k", 2)
        assert.deepStrictEqual(yield* a.get("k"), some(2))
        yield* TestClock.adjust(millis - 1)
        assert.deepStrictEqual(yield* b.get("k"), some(1))
        assert.strictEqual(yield* b.wrap("k", Effect.die("hit")), 1)
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(yield* b.get("k"), some(2))
      })
    )
  }

  it.effect("what is near ends with its entry", () =>
    Effect.gen(function* () {
      const { instance } = yield* cluster
      const a = yield* instance("a")
      yield* a.set("k", 1, { ttl: "2 seconds" })
      yield* TestClock.adjust("1500 millis")
      assert.deepStrictEqual(yield* a.get("k"), some(1))
      yield* TestClock.adjust("499 millis")
      assert.deepStrictEqual(yield* a.get("k"), some(1))
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* a.get("k"), Option.none())
    })
  )

  it.effect("a gap drops everything", () =>
    Effect.gen(function* () {
      const { gap, instance, state } = yield* cluster
      const a = yield* instance("a")
      const b = yield* instance("b")
      yield* a.set("k", 1)
      yield* b.get("k")
      state.broadcast = "lost"
      yield* a.set("k", 2)
      assert.deepStrictEqual(yield* b.get("k"), some(1))
      yield* gap
      assert.deepStrictEqual(yield* b.get("k"), some(2))
    })
  )

  const arrivals: ReadonlyArray<
    readonly [string, (a: Cache.NamedCache<number>) => Effect.Effect<unknown, Cache.CacheError>, number | undefined]
  > = [
    ["set", (a) => a.set("k", 2), 2],
    ["del", (a) => a.del("k"), undefined],
    ["reset", (a) => a.reset, undefined]
  ]
  for (const [name, change, expected] of arrivals) {
    for (const writer of ["another instance", "this one"]) {
      it.effect(`a read that is on its way while a ${name} on ${writer} is told of is not kept`, () =>
        Effect.gen(function* () {
          const { instance, state } = yield* cluster
          const a = yield* instance("a")
          const b = yield* instance("b")
          yield* a.set("k", 1)
          const gate = yield* Deferred.make<void>()
          state.beforeAnswer = Deferred.await(gate)
          const reads = [
            yield* Effect.forkChild(b.get("k"), { startImmediately: true }),
            yield* Effect.forkChild(b.get("k"), { startImmediately: true })
          ]
          state.beforeAnswer = Effect.void
          yield* change(writer === "this one" ? b : a)
          yield* TestClock.adjust(1)
          yield* Deferred.succeed(gate, undefined)
          for (const read of reads) assert.deepStrictEqual(yield* Fiber.join(read), some(1))
          assert.deepStrictEqual(yield* b.get("k"), Option.fromUndefinedOr(expected))
        })
      )
    }
  }

  it.effect("while an instance writes, it does not read what it had", () =>
    Effect.gen(function* () {
      const { instance, state } = yield* cluster
      const cache = yield* instance("a")
      yield* cache.set("k", 1)
      yield* cache.get("k")
      const gate = yield* Deferred.make<void>()
      state.beforeWrite = Deferred.await(gate)
      const write = yield* Effect.forkChild(cache.set("k", 2), { startImmediately: true })
      const { reads } = state
      assert.deepStrictEqual(yield* cache.get("k"), some(1))
      assert.strictEqual(state.reads, reads + 1)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(write)
      assert.deepStrictEqual(yield* cache.get("k"), some(2))
    })
  )

  it.effect("what a load stores is told: another instance may still have what was evicted", () =>
    Effect.gen(function* () {
      const { instance, state } = yield* cluster
      const a = yield* instance("a")
      const b = yield* instance("b")
      yield* b.set("k", 1)
      yield* b.get("k")
      yield* state.evict("k")
      assert.deepStrictEqual(yield* b.get("k"), some(1))
      assert.strictEqual(yield* a.wrap("k", Effect.succeed(2)), 2)
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* b.get("k"), some(2))
    })
  )

  it.effect("a read that is on its way during a gap is not kept", () =>
    Effect.gen(function* () {
      const { gap, instance, state } = yield* cluster
      const a = yield* instance("a")
      const b = yield* instance("b")
      yield* a.set("k", 1)
      const gate = yield* Deferred.make<void>()
      state.beforeAnswer = Deferred.await(gate)
      const read = yield* Effect.forkChild(b.get("k"), { startImmediately: true })
      state.beforeAnswer = Effect.void
      state.broadcast = "lost"
      yield* a.set("k", 2)
      yield* gap
      yield* Deferred.succeed(gate, undefined)
      assert.deepStrictEqual(yield* Fiber.join(read), some(1))
      assert.deepStrictEqual(yield* b.get("k"), some(2))
    })
  )

  it.effect("a read that is stopped leaves nothing behind, and the next one is kept", () =>
    Effect.gen(function* () {
      const { instance, state } = yield* cluster
      const cache = yield* instance("a")
      yield* cache.set("k", 1)
      state.beforeAnswer = Effect.never
      yield* Fiber.interrupt(yield* Effect.forkChild(cache.get("k"), { startImmediately: true }))
      state.beforeAnswer = Effect.void
      yield* cache.get("k")
      const { reads } = state
      assert.deepStrictEqual(yield* cache.get("k"), some(1))
      assert.strictEqual(state.reads, reads)
    })
  )

  it.effect("at most `capacity` entries are kept, those that are read before those that are not", () =>
    Effect.gen(function* () {
      const { instance, state } = yield* cluster
      const cache = yield* instance("a", { near: { capacity: 100, ttl: "1 hour" } })
      const keys = Array.from({ length: 1_000 }, (_, i) => `key ${i}`)
      yield* cache.mset(keys.map((key, i) => [key, i] as const))
      const hot = keys.slice(0, 20)
      state.reads = 0
      for (const key of keys.slice(20)) {
        yield* cache.get(key)
        for (const key of hot) yield* cache.get(key)
      }
      // Nobody asked twice: what is read again and again is never dropped.
      assert.strictEqual(state.reads, 1_000)
      const readsOf = (keys: ReadonlyArray<string>) =>
        Effect.gen(function* () {
          const before = state.reads
          for (const key of keys) yield* cache.get(key)
          return state.reads - before
        })
      assert.strictEqual(yield* readsOf(hot), 0)
      // Reading them all once more asks for all but those that are kept.
      assert.isAtLeast(yield* readsOf(keys), 900)
      assert.strictEqual(yield* readsOf(keys.slice(-1)), 0)
    })
  )

  it.effect("an invalidation that cannot be published is a warning, not the writer's failure", () => {
    const logs: Array<{ readonly level: string; readonly message: unknown; readonly annotations: object }> = []
    const logger = Logger.map(Logger.formatStructured, (entry) => void logs.push(entry))
    return Effect.gen(function* () {
      const { instance, state } = yield* cluster
      const a = yield* instance("a")
      state.broadcast = "refused"
      yield* a.set("k", 1)
      assert.isTrue(yield* a.del("k"))
      yield* TestClock.adjust("1 minute")
      const warnings = logs.filter(({ level, message }) => level === "WARN" && String(message).includes("not told"))
      assert.isAtLeast(warnings.length, 1)
      assert.deepInclude(warnings[0]!.annotations, { cache: "numbers" })
    }).pipe(Effect.provide(Logger.layer([logger])))
  })

  it.effect("an invalidation that could not be published is published again", () =>
    Effect.gen(function* () {
      const { instance, state } = yield* cluster
      const a = yield* instance("a", { near: { ttl: "1 hour" } })
      const b = yield* instance("b", { near: { ttl: "1 hour" } })
      yield* b.set("k", 1)
      yield* b.get("k")
      state.broadcast = "refused"
      yield* a.set("k", 2)
      yield* TestClock.adjust("500 millis")
      assert.deepStrictEqual(yield* b.get("k"), some(1))
      state.broadcast = "works"
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(yield* b.get("k"), some(2))
    })
  )

  it.effect("those who write while others are told are told of together", () =>
    Effect.gen(function* () {
      const { instance, state } = yield* cluster
      const a = yield* instance("a")
      const b = yield* instance("b", { near: { ttl: "1 hour" } })
      const keys = Array.from({ length: 500 }, (_, i) => `key ${i}`)
      yield* Effect.forEach(keys, (key) => a.set(key, 1), { concurrency: "unbounded", discard: true })
      yield* TestClock.adjust("1 second")
      yield* b.mget(keys)
      const { reads } = state
      yield* b.mget(keys)
      assert.strictEqual(state.reads, reads)
      state.messages.length = 0
      yield* Effect.forEach(keys, (key) => a.set(key, 2), { concurrency: "unbounded", discard: true })
      yield* TestClock.adjust("1 second")
      assert.isAtMost(state.messages.length, 250)
      assert.deepStrictEqual(
        yield* b.mget(keys),
        keys.map(() => some(2))
      )
    })
  )

  it.effect("caches of one prefix share what is near, under the smaller of their bounds", () =>
    Effect.gen(function* () {
      const { instance, instanceOf, state } = yield* cluster
      const other = yield* instance("b")
      const make = yield* instanceOf("a")
      const cache = yield* make({ near: { ttl: "1 hour" } })
      yield* other.set("k", 1)
      yield* cache.get("k")
      state.broadcast = "lost"
      yield* other.set("k", 2)
      yield* TestClock.adjust("59 minutes")
      assert.deepStrictEqual(yield* cache.get("k"), some(1))
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* cache.get("k"), some(2))
      const strict = yield* make({ near: { ttl: "1 second" } })
      for (const value of [3, 4]) {
        yield* other.set("k", value)
        yield* TestClock.adjust("1 second")
        for (const one of [cache, strict]) assert.deepStrictEqual(yield* one.get("k"), some(value))
      }
    })
  )
})
