/** Draining, and handlers that do not stop. */
import { assert, describe } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { eventually } from "../support.ts"
import {
  attempts,
  depth,
  empty,
  type Fixture,
  handler,
  numbers,
  publish,
  publishAll,
  type Run,
  Task,
  theDeadLetter,
  worker
} from "./fixture.ts"

export const tests = ({
  backend,
  advance,
  late,
  within,
  test,
  whereAttemptsOutliveCuts,
  instances,
  until,
  ended,
  dead
}: Fixture): void => {
  describe("closing the scope", () => {
    test("takes nothing new and waits for running handlers", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        const go = yield* Deferred.make<void>()
        const draining = yield* worker(a, Task, {
          concurrency: 3,
          lease: "600 millis",
          shutdownTimeout: "20 seconds",
          process: handler(runs, () => Deferred.await(go))
        })
        yield* publishAll(a, 2, { timeout: "1 minute" })
        yield* until("both run", () => runs.length === 2)
        const closing = yield* Effect.forkChild(draining.close)
        yield* advance("100 millis")
        yield* publish(b, 2)
        yield* advance("2 seconds")
        assert.isUndefined(closing.pollUnsafe(), "it waits")
        assert.lengthOf(runs, 2, "takes nothing new")
        assert.deepStrictEqual(yield* depth(b), { ...empty, ready: 1, inFlight: 2 }, "leases are kept meanwhile")
        yield* Deferred.succeed(go, undefined)
        yield* eventually(
          backend,
          Effect.sync(() => closing.pollUnsafe() !== undefined),
          "the scope is closed"
        )
        assert.deepStrictEqual(yield* depth(b), { ...empty, ready: 1 }, "what ran is acknowledged")
      }))

    test("after shutdownTimeout interrupts them and gives their jobs back, the attempt not counted", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const onA: Array<Run> = []
        const onB: Array<Run> = []
        let interrupted = 0
        const process = handler(onA, () => Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++)))
        const draining = yield* worker(a, Task, { concurrency: 2, shutdownTimeout: "1 second", process })
        yield* publishAll(a, 2, { timeout: "1 minute" })
        yield* until("both run", () => onA.length === 2)
        const closing = yield* Effect.forkChild(draining.close)
        yield* advance("700 millis")
        assert.isUndefined(closing.pollUnsafe(), "it waits")
        assert.strictEqual(interrupted, 0)
        yield* advance("500 millis")
        yield* eventually(
          backend,
          Effect.sync(() => closing.pollUnsafe() !== undefined),
          "the scope is closed",
          {
            steps: 10
          }
        )
        assert.strictEqual(interrupted, 2)
        assert.deepStrictEqual(yield* depth(b), { ...empty, ready: 2 })
        yield* worker(b, Task, { process: handler(onB, () => Effect.void) })
        yield* ended(b)
        assert.deepStrictEqual(attempts(onB), [1, 1])
        assert.deepStrictEqual(numbers(onB), [0, 1])
      }))

    test("a job given back again and again keeps all its attempts", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const runs: Array<Run> = []
        yield* publish(a, 1, { maxRetries: 0, timeout: "1 minute" })
        for (let i = 1; i <= 5; i++) {
          const draining = yield* worker(a, Task, { process: handler(runs, () => Effect.never) })
          yield* until(`run ${i}`, () => runs.length === i)
          yield* draining.close
        }
        assert.deepStrictEqual(attempts(runs), [1, 1, 1, 1, 1])
        assert.deepStrictEqual(yield* depth(a), { ...empty, ready: 1 })
      }))

    test("loses nothing while jobs stream in, and runs nothing twice", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        const options = {
          concurrency: 4,
          shutdownTimeout: "5 seconds",
          process: handler(runs, () => Effect.sleep("30 millis"))
        } as const
        yield* worker(b, Task, options)
        const publishing = yield* Effect.forkChild(
          Effect.forEach(
            Array.from({ length: 60 }, (_, n) => n),
            (n) => Effect.andThen(publish(b, n), Effect.sleep("10 millis")),
            { discard: true }
          )
        )
        for (let i = 0; i < 6; i++) {
          const short = yield* worker(a, Task, options)
          yield* advance("70 millis")
          const closing = yield* Effect.forkChild(short.close)
          yield* eventually(
            backend,
            Effect.sync(() => closing.pollUnsafe() !== undefined),
            "closed",
            {
              step: "10 millis"
            }
          )
        }
        yield* eventually(
          backend,
          Effect.sync(() => publishing.pollUnsafe() !== undefined),
          "all are published"
        )
        yield* ended(b)
        assert.deepStrictEqual(
          numbers(runs),
          Array.from({ length: 60 }, (_, n) => n)
        )
      }))

    whereAttemptsOutliveCuts("waits for what has finished to be acknowledged, also through a short outage", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        const go = yield* Deferred.make<void>()
        const process = handler(runs, () => Deferred.await(go))
        const draining = yield* worker(a, Task, { process, shutdownTimeout: "5 seconds" })
        yield* publish(b, 1)
        yield* until("the job runs", () => runs.length === 1)
        yield* a.disconnect
        yield* Deferred.succeed(go, undefined)
        const closing = yield* Effect.forkChild(draining.close)
        yield* advance("1 second")
        assert.isUndefined(closing.pollUnsafe(), "it waits")
        yield* a.reconnect
        yield* eventually(
          backend,
          Effect.sync(() => closing.pollUnsafe() !== undefined),
          "the scope is closed"
        )
        assert.deepStrictEqual(yield* depth(b), empty)
      })
    )

    test("gives back at once what a taking under way still brings", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const onA: Array<Run> = []
        const onB: Array<Run> = []
        const draining = yield* worker(a, Task, {
          process: handler(onA, () => Effect.void),
          shutdownTimeout: "5 seconds"
        })
        yield* advance("100 millis")
        yield* a.disconnect
        yield* publish(b, 1)
        yield* advance("100 millis")
        const closing = yield* Effect.forkChild(draining.close)
        yield* advance("1 second")
        yield* a.reconnect
        yield* eventually(
          backend,
          Effect.sync(() => closing.pollUnsafe() !== undefined),
          "the scope is closed"
        )
        assert.deepStrictEqual(yield* depth(b), { ...empty, ready: 1 })
        yield* worker(b, Task, { process: handler(onB, () => Effect.void) })
        yield* ended(b)
        assert.deepStrictEqual([attempts(onA), attempts(onB)], [[], [1]])
      }))

    test("does not hang on a handler that ignores interruption: its job is given back", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const onA: Array<Run> = []
        const onB: Array<Run> = []
        const release = yield* Deferred.make<void>()
        const draining = yield* worker(a, Task, {
          process: handler(onA, () => Effect.uninterruptible(Deferred.await(release)))
        })
        yield* publish(a, 1, { timeout: "1 minute" })
        yield* until("the job runs", () => onA.length === 1)
        const closing = yield* Effect.forkChild(draining.close)
        yield* advance("6 seconds")
        assert.isDefined(closing.pollUnsafe(), "closed within 5 seconds of interrupting")
        yield* worker(b, Task, { process: handler(onB, () => Effect.void) })
        yield* until("another instance runs it", () => onB.length === 1)
        yield* ended(b)
        yield* Deferred.succeed(release, undefined)
        yield* advance("100 millis")
        assert.deepStrictEqual([attempts(onA), attempts(onB)], [[1], [1]])
        assert.deepStrictEqual(yield* depth(b), empty)
      }))

    test("during an outage does not hang either, and the job runs elsewhere", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const onA: Array<Run> = []
        const onB: Array<Run> = []
        const lease = "600 millis"
        const draining = yield* worker(a, Task, { lease, process: handler(onA, () => Effect.never) })
        yield* publish(a, 1, { timeout: "1 minute", maxRetries: 1 })
        yield* until("the job runs", () => onA.length === 1)
        yield* a.disconnect
        const closing = yield* Effect.forkChild(draining.close)
        yield* eventually(
          backend,
          Effect.sync(() => closing.pollUnsafe() !== undefined),
          "the scope is closed",
          {
            step: "100 millis"
          }
        )
        yield* worker(b, Task, { lease, process: handler(onB, () => Effect.void) })
        yield* until("another instance runs it", () => onB.length === 1)
        yield* a.reconnect
        yield* advance("1 second")
        yield* ended(b)
        assert.deepStrictEqual(yield* depth(b), empty)
      }))
  })

  describe("a handler that ignores interruption", () => {
    test("is left behind 5 seconds after its timeout: its job goes on, other places go on", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const runs: Array<Run> = []
        const release = yield* Deferred.make<void>()
        yield* worker(a, Task, {
          concurrency: 2,
          process: handler(runs, (n, { attempt }) =>
            n === 0 && attempt === 1 ? Effect.uninterruptible(Deferred.await(release)) : Effect.void
          )
        })
        yield* publish(a, 0, { timeout: "300 millis", maxRetries: 1 })
        yield* until("the stubborn job runs", () => runs.length === 1)
        yield* publish(a, 1)
        yield* until("the next job runs", () => runs.length === 2)
        yield* advance("5500 millis")
        yield* until("the stubborn job is retried", () => runs.length === 3)
        yield* ended(a)
        assert.deepStrictEqual(
          runs.map((run) => [run.n, run.attempt]),
          [
            [0, 1],
            [1, 1],
            [0, 2]
          ]
        )
        yield* Deferred.succeed(release, undefined)
        yield* advance("500 millis")
        assert.deepStrictEqual(yield* depth(a), empty, "its late end changes nothing")
        assert.lengthOf(runs, 3)
      }))

    test("keeps its place until it ends, so that concurrency holds", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        const release = yield* Deferred.make<void>()
        yield* worker(a, Task, {
          process: handler(runs, (n) => (n === 0 ? Effect.uninterruptible(Deferred.await(release)) : Effect.void))
        })
        yield* publish(b, 0, { timeout: "300 millis" })
        yield* until("the stubborn job runs", () => runs.length === 1)
        yield* dead(b, 1)
        const letter = yield* theDeadLetter(b)
        assert.strictEqual(letter.reason, "TimedOut")
        yield* publish(b, 1)
        yield* advance("500 millis")
        assert.lengthOf(runs, 1)
        yield* Deferred.succeed(release, undefined)
        yield* until("the next job runs", () => runs.length === 2)
        yield* ended(b)
        assert.deepStrictEqual(yield* depth(b), { ...empty, dead: 1 })
      }))
  })
}
