/** Clusters in a unit test: what happens to instances, and what can be seen of them. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { Cache, EventQueue, Instance, Job, Lock, Plugin, PubSub, SyncMessage, Topic } from "../../src/index.ts"
import { Task, TaskStore, Tasks } from "../../src/plugins/async-task-manager/index.ts"
import { TestCluster } from "../../src/testing/index.ts"

/** What the instances of a test have done, in order. */
class Diary extends Context.Service<Diary, Array<string>>()("test/Diary") {
  static readonly layer = Layer.sync(Diary, () => [])
}
const write = (text: string) =>
  Effect.gen(function* () {
    const { id } = yield* Instance.Instance
    const diary = yield* Diary
    diary.push(`${id}: ${text}`)
  })

const Note = Topic.make("note", Schema.String)
const Work = Job.make("work", Schema.String, { maxRetries: 3 })

const Worker = Plugin.make("worker", {
  load: Effect.gen(function* () {
    yield* Effect.addFinalizer(() => write("released"))
    yield* PubSub.subscribe(Note, (text) => write(`heard ${text}`))
    yield* EventQueue.subscribe(Work, {
      lease: "10 seconds",
      process: (text) => Effect.andThen(write(`began ${text}`), Effect.delay(write(`did ${text}`), "3 seconds"))
    })
  })
})

describe("a cluster in a test", () => {
  it.effect("runs plugins on every instance, with what the test provides", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(3, [Worker])
      yield* cluster.on(0, PubSub.publish(Note, "hello"))
      assert.deepStrictEqual(yield* Diary, ["1: heard hello", "2: heard hello"])
      assert.deepStrictEqual(
        (yield* cluster.delivered(Note)).map(({ from, message, to }) => [from, to, message]),
        [
          [0, 1, "hello"],
          [0, 2, "hello"]
        ]
      )
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("stops an instance cleanly: its jobs drain, its finalizers run", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(1, [Worker])
      yield* cluster.on(0, EventQueue.publish(Work, "a"))
      yield* cluster.stop(0)
      assert.strictEqual(cluster.state(0), "stopped")
      assert.deepStrictEqual(yield* Diary, ["0: began a", "0: did a", "0: released"])
      assert.deepStrictEqual(yield* cluster.jobs(Work), [])
      const late = yield* Effect.exit(cluster.on(0, Effect.void))
      assert.include(String(Exit.isFailure(late) && late.cause), "has stopped")
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("crashes an instance: no finalizer runs, its job and its lock are others' when the lease ends", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(2, [Worker])
      yield* cluster.on(0, EventQueue.publish(Work, "a"))
      yield* cluster.on(0, Lock.acquire("k", { ttl: "5 seconds" }))
      assert.deepStrictEqual(
        (yield* cluster.locks).map(({ holder, key }) => [key, holder]),
        [["k", 0]]
      )
      assert.strictEqual((yield* cluster.jobs(Work))[0]?.holder, 0)
      const running = yield* Effect.forkChild(cluster.on(0, Effect.never))
      yield* TestClock.adjust("1 second")
      yield* cluster.crash(0)
      assert.include(String(running.pollUnsafe()), "has crashed")
      assert.deepStrictEqual(yield* Diary, ["0: began a"])
      assert.strictEqual((yield* cluster.on(1, Lock.tryAcquire("k")))._tag, "None")

      yield* TestClock.adjust("4001 millis")
      assert.strictEqual((yield* cluster.on(1, Lock.tryAcquire("k")))._tag, "Some")
      yield* TestClock.adjust("9 seconds")
      assert.deepStrictEqual(yield* Diary, ["0: began a", "1: began a", "1: did a"])
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("restarts an instance under another id", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(2, [Worker])
      yield* cluster.crash(1)
      yield* cluster.on(0, PubSub.publish(Note, "missed"))
      yield* cluster.restart(1)
      yield* cluster.on(0, PubSub.publish(Note, "heard"))
      assert.strictEqual(cluster.id(1), "1.2")
      assert.deepStrictEqual(yield* Diary, ["1.2: heard heard"])
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("freezes an instance: nothing happens on it, its leases run out, and on thaw it sees what time it is", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(2, [Worker])
      const protectedWork = yield* Effect.forkChild(
        Effect.flip(cluster.on(0, Lock.runExclusive("k", Effect.never, { ttl: "5 seconds" })))
      )
      yield* cluster.on(0, Effect.forkScoped(Effect.delay(write("woke"), "2 seconds")))
      yield* TestClock.adjust("1 second")
      yield* cluster.freeze(0)
      const asked = yield* Effect.forkChild(cluster.on(0, Clock.currentTimeMillis))
      yield* cluster.on(1, PubSub.publish(Note, "one"))
      yield* cluster.on(1, PubSub.publish(Note, "two"))
      const next = yield* Effect.forkChild(cluster.on(1, Lock.acquire("k")))
      yield* TestClock.adjust("10 seconds")
      assert.isDefined(next.pollUnsafe())
      assert.isUndefined(protectedWork.pollUnsafe())
      assert.deepStrictEqual(yield* Diary, [])

      yield* cluster.thaw(0)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual([...(yield* Diary)].sort(), ["0: heard one", "0: heard two", "0: woke"])
      assert.isBelow((yield* Diary).indexOf("0: heard one"), (yield* Diary).indexOf("0: heard two"))
      assert.deepStrictEqual(asked.pollUnsafe(), Exit.succeed(11_000))
      const lost = protectedWork.pollUnsafe()
      assert.strictEqual(lost?._tag === "Success" && lost.value.reason._tag, "LockLost")
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("partitions instances from the broker, and heals", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(3, [Worker])
      yield* cluster.partition([0], [1, 2])
      yield* cluster.on(1, PubSub.publish(Note, "one"))
      const failed = yield* Effect.forkChild(Effect.flip(cluster.on(0, PubSub.publish(Note, "no"))))
      yield* TestClock.adjust("5 seconds")
      const error = failed.pollUnsafe()
      assert.strictEqual(error?._tag === "Success" && error.value.reason._tag, "Unavailable")
      yield* cluster.partition([0, "broker"], [1, 2])
      yield* cluster.on(0, PubSub.publish(Note, "two"))
      assert.deepStrictEqual(yield* Diary, ["2: heard one"])
      yield* cluster.heal
      yield* cluster.on(0, PubSub.publish(Note, "three"))
      assert.deepStrictEqual(yield* Diary, ["2: heard one", "1: heard three", "2: heard three"])
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("skews the wall clock of one instance, and no timer", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(2, [Worker])
      yield* cluster.skew(1, "3 seconds")
      assert.strictEqual(yield* cluster.on(0, Clock.currentTimeMillis), 0)
      assert.strictEqual(yield* cluster.on(1, Clock.currentTimeMillis), 3_000)
      yield* cluster.on(1, Effect.forkScoped(Effect.delay(write("a second later"), "1 second")))
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(yield* Diary, [])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* Diary, ["1: a second later"])
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("delays, loses, doubles and reorders the messages of a channel", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(2, [Worker])
      const send = (...texts: ReadonlyArray<string>) =>
        cluster.on(
          0,
          Effect.forEach(texts, (text) => PubSub.publish(Note, text))
        )
      const heard = Effect.map(Diary, (diary) => diary.splice(0).map((line) => line.replace("1: heard ", "")))

      yield* cluster.network({ delay: "2 seconds" }, Note)
      yield* send("late")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* heard, [])
      yield* cluster.network({ delay: "100 millis", jitter: "1 second" }, Note)
      yield* send(..."abcdefgh")
      yield* TestClock.adjust("3 seconds")
      assert.deepStrictEqual(yield* heard, ["late", ..."abcdefgh"])

      yield* cluster.network({ loss: 1 }, Note)
      yield* send("lost")
      yield* cluster.network({ duplication: 1 }, Note)
      yield* send("double")
      assert.deepStrictEqual(yield* heard, ["double", "double"])

      yield* cluster.network({ reordering: 0.5 }, Note)
      yield* send(..."abcdefgh")
      yield* TestClock.adjust("1 second")
      const order = yield* heard
      assert.notDeepEqual(order, [..."abcdefgh"])
      assert.deepStrictEqual([...order].sort(), [..."abcdefgh"])
      yield* cluster.network(undefined, Note)
      yield* send("plain")
      assert.deepStrictEqual(yield* heard, ["plain"])
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("makes operations of a store fail, before or after they take effect", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(2, [Worker])
      const names = yield* cluster.on(0, Cache.make("names", Schema.String))
      yield* cluster.fail(0, "cache.set")
      assert.strictEqual((yield* Effect.flip(names.set("a", "1"))).reason._tag, "Unavailable")
      assert.deepStrictEqual(yield* cluster.entries("names"), [])
      yield* cluster.fail(0, "cache", { when: "after" })
      assert.strictEqual((yield* Effect.flip(names.set("a", "1"))).reason._tag, "Unavailable")
      assert.deepStrictEqual(
        (yield* cluster.entries("names")).map(({ key, value }) => [key, value]),
        [["a", "1"]]
      )
      yield* names.set("a", "2")

      yield* cluster.fail(0, "queue.publish", { times: Number.POSITIVE_INFINITY })
      yield* Effect.flip(cluster.on(0, EventQueue.publish(Work, "x")))
      yield* Effect.flip(cluster.on(0, EventQueue.publish(Work, "x")))
      yield* cluster.recover
      yield* cluster.on(0, EventQueue.publish(Work, "x"))
      assert.strictEqual((yield* cluster.jobs(Work)).length, 1)
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("gives every instance its own of the services it is told to", () =>
    Effect.gen(function* () {
      class Counter extends Context.Service<Counter, { count: number }>()("test/Counter") {}
      const Changed = SyncMessage.make("counter", Schema.Int, { debounce: 0 })
      const Counting = Plugin.make("counting", {
        sync: {
          message: Changed,
          handle: (count) => Effect.map(Counter, (counter) => Object.assign(counter, { count })),
          resync: Effect.void
        }
      })
      const cluster = yield* TestCluster.make(3, [Counting], { services: Layer.sync(Counter, () => ({ count: 0 })) })
      yield* cluster.on(1, SyncMessage.publish(Changed, 7))
      const counts = yield* Effect.forEach([0, 1, 2], (i) =>
        cluster.on(
          i,
          Effect.map(Counter, ({ count }) => count)
        )
      )
      assert.deepStrictEqual(counts, [7, 0, 7])
    })
  )

  it.effect("a task cancelled elsewhere stops here", () =>
    Effect.gen(function* () {
      const Import = Task.type("import", { params: Schema.Void, result: Schema.Void })
      const Imports = Plugin.make("imports", {
        dependsOn: [Tasks.plugin],
        beforeLoad: Tasks.Tasks.use((tasks) => tasks.register(Import, () => Effect.never))
      })
      const cluster = yield* TestCluster.make(3, [Tasks.plugin, Imports], { services: Tasks.layer })
      const id = yield* cluster.on(
        0,
        Tasks.Tasks.use((tasks) => tasks.start(Import, undefined))
      )
      yield* TestClock.adjust("1 second")
      const canceled = yield* cluster.on(
        2,
        Tasks.Tasks.use((tasks) => tasks.cancel(id))
      )
      assert.isTrue(canceled)
      yield* TestClock.adjust("1 second")
      const { status } = yield* cluster.on(
        0,
        Tasks.Tasks.use((tasks) => tasks.get(id))
      )
      assert.strictEqual(status, "canceled")
      assert.deepStrictEqual(yield* cluster.jobs(), [])
    }).pipe(Effect.provide(TaskStore.layerMemory))
  )

  it.effect("interrupts what was run on an instance before it stops", () =>
    Effect.gen(function* () {
      const cluster = yield* TestCluster.make(1, [Worker])
      const running = yield* Effect.forkChild(
        cluster.on(
          0,
          Effect.onInterrupt(Effect.never, () => write("interrupted"))
        )
      )
      yield* Effect.yieldNow
      yield* cluster.stop(0)
      assert.include(String(running.pollUnsafe()), "has stopped")
      assert.deepStrictEqual(yield* Diary, ["0: interrupted", "0: released"])
    }).pipe(Effect.provide(Diary.layer))
  )

  it.effect("does the same every time", () =>
    Effect.gen(function* () {
      const once = Effect.scoped(
        Effect.gen(function* () {
          const seen: Array<unknown> = []
          const cluster = yield* TestCluster.make(3, [Worker], { seed: 7 })
          cluster.observe((one) => seen.push(one))
          yield* cluster.network({ jitter: "1 second", loss: 0.2 })
          for (let i = 0; i < 20; i++) {
            yield* cluster.on(i % 3, EventQueue.publish(Work, `${i}`))
            yield* cluster.on(i % 3, PubSub.publish(Note, `${i}`))
            yield* TestClock.adjust("700 millis")
          }
          yield* cluster.crash(1)
          yield* TestClock.adjust("1 minute")
          return seen.map((one) => ({ ...(one as object), at: undefined, until: undefined }))
        })
      ).pipe(Effect.provide(Diary.layer))
      const first = yield* once
      assert.isAbove(first.length, 100)
      assert.deepStrictEqual(yield* once, first)
    })
  )
})
