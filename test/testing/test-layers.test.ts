/** The layers for small tests: what they show, and how they fail. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { Cache, EventQueue, Job, Lock, PubSub, SyncMessage, Topic } from "../../src/index.ts"
import {
  TestCache,
  TestEventQueue,
  TestLock,
  TestPubSub,
  TestStores,
  TestSyncMessage
} from "../../src/testing/index.ts"

/** Encoded as text: what is decoded is not what is stored. */
const Day = Schema.Struct({ at: Schema.DateTimeUtcFromString })
const day = Schema.decodeUnknownSync(Day)({ at: "2026-01-02T00:00:00.000Z" })

const unavailable = <A, E extends { readonly reason: { readonly _tag: string } }, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => assert.strictEqual(reason._tag, "Unavailable"))

describe("TestCache", () => {
  const test = <A, E>(name: string, body: Effect.Effect<A, E, Cache.Cache | TestStores.TestStores>) =>
    it.effect(name, () => Effect.provide(body, TestCache.layerTest))

  test(
    "shows the live entries of a cache, decoded, and for how long",
    Effect.gen(function* () {
      const days = yield* Cache.make("days:1", Day)
      yield* days.set("a", day, { ttl: "1 minute" })
      yield* days.set("b", day)
      yield* (yield* Cache.make("other", Day)).set("c", day)
      yield* TestClock.adjust("15 seconds")
      assert.deepStrictEqual(yield* TestCache.entries("days:1", Day), [
        { key: "a", value: day, expiresIn: 45_000 },
        { key: "b", value: day, expiresIn: Number.POSITIVE_INFINITY }
      ])
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(
        (yield* TestCache.entries("days:1", Day)).map(({ key }) => key),
        ["b"]
      )
      assert.isTrue(Schema.isSchemaError(yield* Effect.flip(TestCache.entries("days:1", Schema.Number))))
    })
  )

  test(
    "fails once, as often as told, or until it recovers; before it takes effect, or after; for one cache, or all",
    Effect.gen(function* () {
      const a = yield* Cache.make("a", Schema.Number)
      const b = yield* Cache.make("b", Schema.Number)
      yield* TestCache.fail("set")
      yield* unavailable(a.set("k", 1))
      assert.deepStrictEqual(yield* TestCache.entries("a", Schema.Number), [])
      yield* a.set("k", 2)

      yield* TestCache.fail("set", { when: "after", times: 2 })
      yield* unavailable(a.set("k", 3))
      yield* unavailable(a.set("k", 4))
      assert.deepStrictEqual(yield* a.get("k"), Option.some(4))

      yield* TestCache.fail("any", { on: "b", times: Number.POSITIVE_INFINITY })
      for (let i = 0; i < 3; i++) yield* unavailable(b.get("k"))
      assert.strictEqual(yield* b.wrap("k", Effect.succeed(7)), 7)
      assert.deepStrictEqual(yield* a.get("k"), Option.some(4))
      yield* TestCache.recover
      assert.deepStrictEqual(yield* b.get("k"), Option.none())
    })
  )
})

describe("TestPubSub", () => {
  const Days = Topic.make("days", Day)
  const Other = Topic.make("other", Schema.String)
  const test = <A, E>(name: string, body: Effect.Effect<A, E, PubSub.PubSub | TestStores.TestStores>) =>
    it.effect(name, () => Effect.provide(body, TestPubSub.layerTest))

  test(
    "shows what was published on a topic, decoded, and fails for one of them",
    Effect.gen(function* () {
      yield* TestPubSub.fail("publish", { on: Days })
      yield* PubSub.publish(Other, "o")
      yield* unavailable(PubSub.publish(Days, day))
      assert.deepStrictEqual(yield* TestPubSub.published(Days), [])
      yield* TestPubSub.fail("publish", { on: "days", when: "after" })
      yield* unavailable(PubSub.publish(Days, day))
      yield* PubSub.publish(Days, day)
      assert.deepStrictEqual(yield* TestPubSub.published(Days), [day, day])
      assert.deepStrictEqual(yield* TestPubSub.published(Other), ["o"])
    })
  )

  test(
    "delivers from elsewhere, and tells of a gap",
    Effect.scoped(
      Effect.gen(function* () {
        const heard: Array<unknown> = []
        yield* TestPubSub.fail("subscribe")
        yield* unavailable(PubSub.subscribe(Days, () => Effect.void))
        yield* PubSub.subscribe(Days, (message) => Effect.sync(() => heard.push(message)), {
          onGap: Effect.sync(() => heard.push("gap"))
        })
        yield* TestPubSub.deliver(Days, day)
        yield* TestPubSub.gap
        assert.deepStrictEqual(heard, [day, "gap"])
        assert.deepStrictEqual(yield* TestPubSub.published(Days), [])
      })
    )
  )
})

describe("TestSyncMessage", () => {
  const Changed = SyncMessage.make("days", Day, { debounce: 0 })

  it.effect("shows what was told, delivers from elsewhere, and fails apart from PubSub", () =>
    Effect.gen(function* () {
      const heard: Array<unknown> = []
      yield* SyncMessage.subscribe(Changed, {
        handle: (message) => Effect.sync(() => heard.push(message)),
        resync: Effect.sync(() => heard.push("resync"))
      })
      yield* SyncMessage.publish(Changed, day)
      yield* TestPubSub.fail("publish")
      yield* TestSyncMessage.fail("publish", { on: Changed })
      yield* unavailable(SyncMessage.publish(Changed, day))
      yield* unavailable(PubSub.publish(Topic.make("days", Schema.String), "x"))
      assert.deepStrictEqual(yield* TestSyncMessage.published(Changed), [day])
      assert.deepStrictEqual(heard, [])
      yield* TestSyncMessage.deliver(Changed, day)
      assert.deepStrictEqual(heard, ["resync", day])
      yield* TestSyncMessage.gap
      assert.deepStrictEqual(heard, ["resync", day, "resync"])
    }).pipe(Effect.provide(Layer.merge(TestSyncMessage.layerTest, TestPubSub.layerTest)))
  )
})

describe("TestEventQueue", () => {
  const Work = Job.make("work", Day, { maxRetries: 1 })
  const test = <A, E>(name: string, body: Effect.Effect<A, E, EventQueue.EventQueue | TestStores.TestStores>) =>
    it.effect(name, () => Effect.provide(body, TestEventQueue.layerTest))

  test(
    "shows the jobs of a channel, decoded, in every state",
    Effect.scoped(
      Effect.gen(function* () {
        const states = Effect.map(TestEventQueue.jobs(Work), (jobs) =>
          jobs.map(({ attempts, id, state }) => [id, state, attempts])
        )
        yield* EventQueue.publish(Work, day, { id: "now" })
        yield* EventQueue.publish(Work, day, { id: "later", delay: "1 hour" })
        const [job] = yield* TestEventQueue.jobs(Work)
        assert.deepStrictEqual(job, { id: "now", payload: day, state: "ready", attempts: 0, lastError: undefined })
        yield* EventQueue.subscribe(Work, { process: () => Effect.delay(Effect.fail("no"), "1 second") })
        yield* TestClock.adjust(0)
        assert.deepStrictEqual(yield* states, [
          ["now", "inFlight", 1],
          ["later", "delayed", 0]
        ])
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(yield* states, [
          ["later", "delayed", 0],
          ["now", "dead", 2]
        ])
      })
    )
  )

  test(
    "fails: to publish, or to settle, so that a job that is done runs again",
    Effect.scoped(
      Effect.gen(function* () {
        yield* TestEventQueue.fail("publish", { on: Work })
        yield* unavailable(EventQueue.publish(Work, day))
        assert.deepStrictEqual(yield* TestEventQueue.jobs(Work), [])
        const attempts: Array<number> = []
        yield* EventQueue.subscribe(Work, {
          lease: "10 seconds",
          process: (_, { attempt }) => Effect.sync(() => attempts.push(attempt))
        })
        yield* TestEventQueue.fail("settle", { times: Number.POSITIVE_INFINITY })
        yield* EventQueue.publish(Work, day, { maxRetries: 9 })
        yield* TestClock.adjust("30 seconds")
        assert.deepStrictEqual(attempts.slice(0, 2), [1, 2])
        yield* TestEventQueue.recover
        yield* TestClock.adjust("30 seconds")
        assert.deepStrictEqual(yield* TestEventQueue.jobs(Work), [])
      })
    )
  )
})

describe("TestLock", () => {
  const test = <A, E>(name: string, body: Effect.Effect<A, E, Lock.Lock | TestStores.TestStores>) =>
    it.effect(name, () => Effect.provide(body, TestLock.layerTest))

  test(
    "shows the locks that are held, here and elsewhere, and who waits",
    Effect.gen(function* () {
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* TestLock.hold("theirs", { ttl: "10 seconds", renew: false })
          const lease = yield* Lock.acquire("ours")
          const waiting = yield* Effect.forkChild(Lock.runExclusive("theirs", TestLock.held))
          yield* TestClock.adjust("4 seconds")
          const [theirs, ours] = yield* TestLock.held
          const { fence: _, ...rest } = theirs!
          assert.deepStrictEqual(rest, { key: "theirs", here: false, expiresIn: 6_000, waiters: 1 })
          assert.deepInclude(ours, { key: "ours", here: true, fence: lease.fence, waiters: 0 })
          yield* TestClock.adjust("7 seconds")
          assert.isTrue(waiting.pollUnsafe()?._tag === "Success")
        })
      )
      assert.deepStrictEqual(yield* TestLock.held, [])
    })
  )

  test(
    "fails: to take a lock, and to renew it, so that the work under it is interrupted",
    Effect.gen(function* () {
      yield* TestLock.fail("acquire", { on: "k" })
      yield* Lock.runExclusive("other", Effect.void)
      yield* unavailable(Lock.runExclusive("k", Effect.void))
      yield* TestLock.fail("acquire", { when: "after" })
      yield* unavailable(Effect.scoped(Lock.acquire("k", { ttl: "10 seconds" })))
      assert.deepStrictEqual(
        (yield* TestLock.held).map(({ key }) => key),
        ["k"]
      )
      const lost = yield* Effect.forkChild(Effect.flip(Lock.runExclusive("k", Effect.never, { ttl: "20 seconds" })))
      yield* TestClock.adjust("11 seconds")
      yield* TestLock.fail("renew", { times: Number.POSITIVE_INFINITY })
      yield* TestClock.adjust("21 seconds")
      const exit = lost.pollUnsafe()
      assert.strictEqual(exit?._tag === "Success" && exit.value.reason._tag, "LockLost")
    })
  )
})

describe("TestStores", () => {
  it.effect("is one instance for all five primitives, alone or merged", () => {
    const body = Effect.gen(function* () {
      const cache = yield* Cache.make("c", Schema.Number)
      yield* TestLock.hold("elsewhere")
      yield* PubSub.publish(Topic.make("t", Schema.Number), 1)
      assert.strictEqual(yield* cache.wrap("k", Effect.succeed(1), { exclusive: true }), 1)
      assert.lengthOf(yield* TestCache.entries("c", Schema.Number), 1)
      assert.lengthOf(yield* TestPubSub.published(Topic.make("t", Schema.Number)), 1)
      assert.lengthOf(yield* TestLock.held, 1)
    })
    const merged = Layer.mergeAll(TestCache.layerTest, TestLock.layerTest, TestPubSub.layerTest)
    return Effect.andThen(
      Effect.scoped(Effect.provide(body, merged)),
      Effect.scoped(Effect.provide(body, TestStores.layerTest))
    )
  })
})
