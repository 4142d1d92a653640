/** How many run at once, and whether this instance takes any. */
import { assert, describe } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { eventually } from "../support.ts"
import { depth, empty, type Fixture, handler, numbers, publish, publishAll, type Run, Task, worker } from "./fixture.ts"

export const tests = ({ backend, advance, late, within, test, instances, until, ended }: Fixture): void => {
  describe("concurrency", () => {
    /** A handler that counts how many run at a time. */
    const gauge = () => {
      const gauge = { now: 0, most: 0, done: 0 }
      const process = Effect.gen(function* () {
        gauge.most = Math.max(gauge.most, ++gauge.now)
        yield* Effect.sleep("200 millis")
        gauge.now--
        gauge.done++
      })
      return { gauge, process: () => process }
    }

    for (const [concurrency, jobs, most] of [
      [undefined, 3, 1],
      [3, 7, 3],
      ["unbounded", 40, 40]
    ] as const) {
      test(`${concurrency ?? "1 by default"}: ${most} at a time, and as many`, () =>
        Effect.gen(function* () {
          const { a, b } = yield* instances
          const { gauge: seen, process } = gauge()
          yield* publishAll(a, jobs)
          yield* worker(b, Task, { process, concurrency })
          yield* until("all have run", () => seen.done === jobs)
          assert.strictEqual(seen.most, most)
          yield* ended(a)
        }))
    }

    test("holds per subscription", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const one = gauge()
        const two = gauge()
        const elsewhere = gauge()
        yield* worker(a, Task, { process: one.process })
        yield* worker(a, Task, { process: two.process, concurrency: 2 })
        yield* worker(b, Task, { process: elsewhere.process })
        yield* publishAll(a, 12)
        yield* ended(a)
        assert.deepStrictEqual([one.gauge.most, two.gauge.most, elsewhere.gauge.most], [1, 2, 1])
        assert.strictEqual(one.gauge.done + two.gauge.done + elsewhere.gauge.done, 12)
      }))

    test("a place is free again as soon as its job ends", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        const slow = yield* Deferred.make<void>()
        yield* worker(b, Task, {
          concurrency: 2,
          process: handler(runs, (n) => (n === 0 ? Deferred.await(slow) : Effect.void))
        })
        yield* publishAll(a, 10)
        yield* until("the others ran past the slow one", () => runs.length === 10)
        yield* Deferred.succeed(slow, undefined)
        yield* ended(a)
      }))
  })

  describe("the idle gate", () => {
    test("while it is false this instance takes nothing, and the others are not starved", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const onA: Array<Run> = []
        const onB: Array<Run> = []
        yield* worker(a, Task, {
          process: handler(onA, () => Effect.void),
          idle: Effect.succeed(false),
          concurrency: 5
        })
        yield* worker(b, Task, { process: handler(onB, () => Effect.void) })
        yield* publishAll(a, 10)
        yield* ended(b)
        assert.lengthOf(onA, 0)
        assert.deepStrictEqual(numbers(onB), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
      }))

    test("it is not asked while there is no room for another job", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const runs: Array<Run> = []
        let asked = 0
        const idle = Effect.sync(() => ++asked > 0)
        yield* worker(a, Task, { idle, process: handler(runs, () => Effect.sleep("1 second")) })
        yield* publishAll(a, 2)
        yield* until("the first runs", () => runs.length === 1)
        for (let i = 0; i < 5; i++) yield* advance("100 millis")
        assert.strictEqual(asked, 1)
        yield* ended(a)
        assert.lengthOf(runs, 2)
      }))

    test("its reopening is noticed within idleInterval", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        let open = false
        yield* publish(b, 1)
        yield* worker(a, Task, {
          process: handler(runs, () => Effect.void),
          idle: Effect.sync(() => open),
          idleInterval: "200 millis"
        })
        yield* advance("1 second")
        assert.lengthOf(runs, 0)
        assert.strictEqual((yield* depth(b)).ready, 1, "the job is there for others")
        open = true
        const reopened = yield* Clock.currentTimeMillis
        yield* until("the job ran", () => runs.length === 1)
        assert.isBelow(runs[0]!.at - reopened, 400 + late)
      }))

    test("it is asked before each taking: a running job goes on, the next stays", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const runs: Array<Run> = []
        const go = yield* Deferred.make<void>()
        let open = true
        yield* worker(a, Task, {
          process: handler(runs, () => Deferred.await(go)),
          idle: Effect.sync(() => open),
          idleInterval: "100 millis"
        })
        yield* publishAll(a, 2)
        yield* until("the first runs", () => runs.length === 1)
        open = false
        yield* Deferred.succeed(go, undefined)
        yield* advance("500 millis")
        assert.deepStrictEqual(yield* depth(a), { ...empty, ready: 1 })
        open = true
        yield* ended(a)
        assert.lengthOf(runs, 2)
      }))

    for (const [how, broken] of [
      ["dies", Effect.die("broken gate")],
      [
        "throws",
        Effect.suspend((): Effect.Effect<boolean> => {
          throw new Error("broken gate")
        })
      ],
      ["is interrupted", Effect.interrupt]
    ] as const) {
      test(`a gate that ${how} is false, until it recovers`, () =>
        Effect.gen(function* () {
          const { a } = yield* instances
          const runs: Array<Run> = []
          let healthy = false
          yield* worker(a, Task, {
            process: handler(runs, () => Effect.void),
            idle: Effect.suspend(() => (healthy ? Effect.succeed(true) : broken)),
            idleInterval: "100 millis"
          })
          yield* publish(a, 1)
          yield* advance("500 millis")
          assert.lengthOf(runs, 0)
          healthy = true
          yield* until("the job ran", () => runs.length === 1)
        }))
    }

    test("a gate that never answers keeps nothing from closing", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        const stuck = yield* worker(a, Task, {
          process: () => Effect.void,
          idle: Effect.uninterruptible(Effect.never)
        })
        yield* publish(a, 1)
        yield* advance("100 millis")
        const closing = yield* Effect.forkChild(stuck.close)
        yield* eventually(
          backend,
          Effect.sync(() => closing.pollUnsafe() !== undefined),
          "the scope is closed"
        )
        yield* worker(b, Task, { process: handler(runs, () => Effect.void) })
        yield* until("another instance runs the job", () => runs.length === 1)
      }))

    test("an idle worker starts a new job in milliseconds, not at the next poll", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(b, Task, { process: handler(runs, () => Effect.void) })
        for (let n = 0; n < 5; n++) {
          yield* advance("300 millis")
          const published = yield* Clock.currentTimeMillis
          yield* publish(a, n)
          yield* eventually(
            backend,
            Effect.sync(() => runs.length === n + 1),
            "the job runs",
            { step: "1 millis" }
          )
          assert.isBelow(runs[n]!.at - published, 100 + late)
        }
      }))
  })
}
