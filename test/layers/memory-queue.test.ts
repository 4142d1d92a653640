import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as KeyValueStore from "effect/persistence/KeyValueStore"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Cohort, EventQueue, Job } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"
import { suite } from "../../src/testing/contracts/queue.ts"
import { eventually } from "../../src/testing/contracts/support.ts"
import { memory } from "./memory.ts"

suite(memory, { propertyRuns: 200 })

const Task = Job.make("task", Schema.Struct({ n: Schema.Number }))
const empty = { ready: 0, delayed: 0, inFlight: 0, dead: 0 }

const instances = Effect.gen(function* () {
  const { instance } = yield* memory.make
  return { a: yield* instance(), b: yield* instance() }
})

// The long defaults, and times to the millisecond: on virtual time.
describe("EventQueue in virtual time", () => {
  it.effect("an idle worker starts a new job with no time passing", () =>
    Effect.gen(function* () {
      const { a, b } = yield* instances
      const started: Array<number> = []
      yield* b.run(
        EventQueue.subscribe(Task, {
          process: () => Effect.map(Clock.currentTimeMillis, (at) => started.push(at))
        })
      )
      for (let n = 1; n <= 3; n++) {
        yield* TestClock.adjust("7 seconds")
        yield* a.run(EventQueue.publish(Task, { n }))
        yield* TestClock.adjust(0)
        assert.lengthOf(started, n)
        assert.strictEqual(started[n - 1], yield* Clock.currentTimeMillis)
      }
    })
  )

  it.effect("an attempt may take 15 seconds by default", () =>
    Effect.gen(function* () {
      const { a } = yield* instances
      yield* a.run(EventQueue.subscribe(Task, { process: () => Effect.never }))
      yield* a.run(EventQueue.publish(Task, { n: 1 }))
      yield* TestClock.adjust("14999 millis")
      assert.deepStrictEqual(yield* a.run(EventQueue.depth(Task)), { ...empty, inFlight: 1 })
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* a.run(EventQueue.depth(Task)), { ...empty, dead: 1 })
      const [letter] = yield* a.run(EventQueue.deadLetters(Task))
      assert.strictEqual(letter?.reason, "TimedOut")
    })
  )

  it.effect("the default backoff doubles from 500 ms up to 30 seconds, with a jitter of a fifth", () =>
    Effect.gen(function* () {
      const { a } = yield* instances
      const starts = new Map<number, Array<number>>()
      yield* a.run(
        EventQueue.subscribe(Task, {
          concurrency: "unbounded",
          process: ({ n }) =>
            Effect.flatMap(Clock.currentTimeMillis, (at) => {
              starts.set(n, [...(starts.get(n) ?? []), at])
              return Effect.fail("no")
            })
        })
      )
      for (let n = 0; n < 5; n++) yield* a.run(EventQueue.publish(Task, { n }, { maxRetries: 9 }))
      for (let i = 0; i < 10; i++) yield* TestClock.adjust("30 seconds")
      const gaps = [...starts.values()].map((starts) => starts.slice(1).map((at, i) => at - starts[i]!))
      for (const gap of gaps) {
        assert.lengthOf(gap, 9)
        gap.forEach((millis, i) => {
          const base = Math.min(500 * 2 ** i, 30_000)
          assert.isTrue(millis >= base * 0.8 - 1 && millis <= base * 1.2 + 1, `retry ${i + 1} after ${millis} ms`)
        })
      }
      for (let i = 0; i < 9; i++) assert.isAbove(new Set(gaps.map((gap) => gap[i])).size, 1, "jittered")
    })
  )

  it.effect("a silent worker is noticed after 30 seconds by default", () =>
    Effect.gen(function* () {
      const { a, b } = yield* instances
      let attempts = 0
      const process = (_: unknown, { attempt }: EventQueue.JobInfo) =>
        Effect.suspend(() => {
          attempts = attempt
          return attempt === 1 ? Effect.never : Effect.void
        })
      yield* a.run(EventQueue.subscribe(Task, { process, shutdownTimeout: 0 }))
      yield* a.run(EventQueue.publish(Task, { n: 1 }, { timeout: "10 minutes", maxRetries: 1 }))
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(attempts, 1)
      yield* b.run(EventQueue.subscribe(Task, { process }))
      yield* a.disconnect
      yield* TestClock.adjust("19 seconds")
      assert.strictEqual(attempts, 1)
      yield* TestClock.adjust("11 seconds")
      assert.strictEqual(attempts, 2)
      yield* a.reconnect
      yield* TestClock.adjust("10 seconds")
    })
  )

  it.effect("closing waits 30 seconds by default, then interrupts", () =>
    Effect.gen(function* () {
      const { a } = yield* instances
      const scope = yield* Scope.make()
      yield* a.run(EventQueue.subscribe(Task, { process: () => Effect.never })).pipe(Scope.provide(scope))
      yield* a.run(EventQueue.publish(Task, { n: 1 }, { timeout: "10 minutes" }))
      yield* TestClock.adjust("1 second")
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("29999 millis")
      assert.isUndefined(closing.pollUnsafe())
      assert.strictEqual((yield* a.run(EventQueue.depth(Task))).inFlight, 1)
      yield* TestClock.adjust("1 millis")
      assert.isDefined(closing.pollUnsafe())
      assert.deepStrictEqual(yield* a.run(EventQueue.depth(Task)), { ...empty, ready: 1 })
    })
  )
})

describe("EventQueue with a KeyValueStore", () => {
  /** Instances of an app, each in a scope to close, on hubs that share only the store. */
  const setup = Effect.gen(function* () {
    const store = yield* Layer.build(KeyValueStore.layerMemory)
    const open = (hub: MemoryHub.MemoryHub["Service"], app = "test") =>
      Effect.gen(function* () {
        const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
        const context = yield* Layer.buildWithScope(Cohort.layerMemory({ app, hub }), scope).pipe(Effect.provide(store))
        return {
          run: Effect.provide(context),
          /** A subscription that closes with the instance, before it. */
          subscribe: <A>(job: Job.Job<A>, options: EventQueue.SubscribeOptions<A, never>) =>
            EventQueue.subscribe(job, { shutdownTimeout: 0, ...options }).pipe(
              Effect.provide(context),
              Scope.provide(scope)
            ),
          close: Scope.close(scope, Exit.void)
        }
      })
    return { open, hub: MemoryHub.make, store: Effect.provide(KeyValueStore.KeyValueStore, store) }
  })

  it.effect("what waits, waits to retry, runs, or is dead when the scope closes is restored", () =>
    Effect.gen(function* () {
      const { hub, open } = yield* setup
      const Kept = Job.make("kept", Schema.Struct({ n: Schema.Number }), { keepId: "1 minute" })
      const before = yield* open(yield* hub)
      yield* before.subscribe(Task, {
        process: ({ n }, { attempt }) => (n === 1 ? Effect.never : Effect.fail(new Error(`${n}.${attempt}`)))
      })
      yield* before.subscribe(Kept, { process: () => Effect.void })
      yield* before.run(EventQueue.publish(Task, { n: 3 }, { id: "dead" }))
      yield* before.run(EventQueue.publish(Task, { n: 2 }, { id: "retry", maxRetries: 1 }))
      yield* before.run(EventQueue.publish(Kept, { n: 0 }, { id: "kept" }))
      yield* TestClock.adjust("1 millis")
      yield* before.run(EventQueue.publish(Task, { n: 1 }, { id: "running" }))
      yield* before.run(EventQueue.publish(Task, { n: 4 }, { id: "ready" }))
      yield* before.run(EventQueue.publish(Task, { n: 5 }, { id: "delayed", delay: "20 seconds" }))
      yield* TestClock.adjust("1 millis")
      const was = { ready: 1, delayed: 2, inFlight: 1, dead: 1 }
      assert.deepStrictEqual(yield* before.run(EventQueue.depth(Task)), was)
      yield* before.close
      yield* TestClock.adjust("10 seconds")

      const after = yield* open(yield* hub)
      assert.strictEqual((yield* after.run(EventQueue.depth(Task))).dead, 1)
      assert.isTrue((yield* after.run(EventQueue.publish(Kept, { n: 0 }, { id: "kept" }))).duplicate)
      const runs: Array<readonly [string, number]> = []
      yield* after.subscribe(Task, { process: (_, { attempt, id }) => Effect.sync(() => runs.push([id, attempt])) })
      yield* eventually(
        memory,
        Effect.sync(() => runs.length === 3),
        "all but the delayed job run",
        { step: "1 millis" }
      )
      assert.deepStrictEqual(runs.map((run) => run.join(" ")).sort(), ["ready 1", "retry 2", "running 1"])
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(runs[3], ["delayed", 1])
      const [letter] = yield* after.run(EventQueue.deadLetters(Task))
      assert.strictEqual(letter?.id, "dead")
      assert.include(letter?.firstError, "3.1")
      assert.strictEqual(yield* after.run(EventQueue.redrive(Task, "all")), 1)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(runs[4], ["dead", 1])
      assert.deepStrictEqual(yield* after.run(EventQueue.depth(Task)), empty)
      yield* TestClock.adjust("1 minute")
      assert.isFalse((yield* after.run(EventQueue.publish(Kept, { n: 0 }, { id: "kept" }))).duplicate)
    })
  )

  it.effect("what ended is not restored", () =>
    Effect.gen(function* () {
      const { hub, open, store } = yield* setup
      const first = yield* open(yield* hub)
      yield* first.run(EventQueue.publish(Task, { n: 1 }))
      yield* first.close
      const second = yield* open(yield* hub)
      yield* second.subscribe(Task, { process: () => Effect.void })
      yield* TestClock.adjust("1 millis")
      yield* second.close
      assert.strictEqual(yield* (yield* store).size, 0, "nothing is left in the store")
      const third = yield* open(yield* hub)
      assert.deepStrictEqual(yield* third.run(EventQueue.depth(Task)), empty)
    })
  )

  it.effect("the last instance on a hub saves; one that opens on the same hub finds each job once", () =>
    Effect.gen(function* () {
      const { hub, open } = yield* setup
      const shared = yield* hub
      const a = yield* open(shared)
      const b = yield* open(shared)
      yield* a.run(EventQueue.publish(Task, { n: 1 }))
      yield* a.close
      yield* b.run(EventQueue.publish(Task, { n: 2 }))
      yield* b.close
      const c = yield* open(shared)
      assert.deepStrictEqual(yield* c.run(EventQueue.depth(Task)), { ...empty, ready: 2 })
      const seen: Array<number> = []
      yield* c.subscribe(Task, { process: ({ n }) => Effect.sync(() => seen.push(n)) })
      yield* eventually(
        memory,
        Effect.sync(() => seen.length === 2),
        "both run"
      )
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(seen, [1, 2])
      assert.deepStrictEqual(yield* c.run(EventQueue.depth(Task)), empty)
    })
  )

  it.effect("two apps are saved apart", () =>
    Effect.gen(function* () {
      const { hub, open } = yield* setup
      const shop = yield* open(yield* hub, "shop")
      const blog = yield* open(yield* hub, "blog")
      yield* shop.run(EventQueue.publish(Task, { n: 1 }))
      yield* shop.close
      yield* blog.close
      const restored = yield* open(yield* hub, "blog")
      assert.deepStrictEqual(yield* restored.run(EventQueue.depth(Task)), empty)
      assert.strictEqual((yield* (yield* open(yield* hub, "shop")).run(EventQueue.depth(Task))).ready, 1)
    })
  )

  it.effect("saved jobs that cannot be read are a typed failure, and stay as they are", () =>
    Effect.gen(function* () {
      const { hub, open, store } = yield* setup
      const first = yield* open(yield* hub)
      yield* first.run(EventQueue.publish(Task, { n: 1 }))
      yield* first.close
      const keys = yield* store
      const saved = yield* keys.get("cohort:queue:test")
      yield* keys.set("cohort:queue:test", "{ broken")
      const broken = yield* hub
      const error = yield* Effect.flip(Effect.scoped(open(broken)))
      assert.strictEqual(error._tag, "Unavailable")
      assert.strictEqual(yield* keys.get("cohort:queue:test"), "{ broken")
      yield* keys.set("cohort:queue:test", saved!)
      const repaired = yield* open(broken)
      assert.strictEqual((yield* repaired.run(EventQueue.depth(Task))).ready, 1)
    })
  )

  it.effect("without one, jobs live as long as their hub", () =>
    Effect.gen(function* () {
      const { instance } = yield* memory.make
      const first = yield* instance()
      const running = yield* Deferred.make<void>()
      yield* first.run(EventQueue.publish(Task, { n: 1 }))
      yield* first.close
      const second = yield* instance()
      yield* second.run(EventQueue.subscribe(Task, { process: () => Deferred.succeed(running, undefined) }))
      yield* Deferred.await(running)
    })
  )
})
