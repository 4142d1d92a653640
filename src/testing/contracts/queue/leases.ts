/** What becomes of the jobs of a worker that is lost. */
import { assert, describe } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type { EventQueue } from "../../../index.ts"
import {
  attempts,
  depth,
  empty,
  type Fixture,
  handler,
  publish,
  publishAll,
  type Run,
  Task,
  theDeadLetter,
  worker
} from "./fixture.ts"

export const tests = ({
  advance,
  late,
  attemptsOutliveCuts,
  within,
  test,
  whereAttemptsOutliveCuts,
  instances,
  until,
  ended,
  dead
}: Fixture): void => {
  describe("leases", () => {
    const lease = "600 millis"

    /**
     * Instance `a` has the job in a handler that waits for `end`; it is cut off
     * past its lease, and `b` has the job by now, in a handler that waits for `go`.
     */
    const takenOver = (end: Effect.Effect<unknown, unknown>, options?: EventQueue.PublishOptions) =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const onA: Array<Run> = []
        const onB: Array<Run> = []
        const go = yield* Deferred.make<void>()
        const stopped = { a: false }
        yield* worker(a, Task, {
          lease,
          process: handler(onA, () => Effect.onInterrupt(end, () => Effect.sync(() => (stopped.a = true))))
        })
        yield* publish(a, 1, { id: "x", timeout: "1 minute", ...options })
        yield* until("a has the job", () => onA.length === 1)
        yield* worker(b, Task, { lease, process: handler(onB, () => Deferred.await(go)) })
        yield* a.disconnect
        yield* until("b has the job", () => onB.length === 1)
        return { a, b, onA, onB, go, stopped }
      })

    test("the job of a worker cut off past its lease runs elsewhere, as attempt 2", () =>
      Effect.gen(function* () {
        const { b, go, onA, onB } = yield* takenOver(Effect.never, { maxRetries: 1 })
        assert.deepStrictEqual([attempts(onA), attempts(onB)], [[1], [2]])
        const waited = onB[0]!.at - onA[0]!.at
        assert.isTrue(waited < 1_200 + late, `within one lease, was ${waited} ms`)
        yield* Deferred.succeed(go, undefined)
        yield* ended(b)
        assert.deepStrictEqual(yield* depth(b), empty)
      }))

    test("the handler of a stale worker is interrupted when it is back", () =>
      Effect.gen(function* () {
        const { a, b, go, onB, stopped } = yield* takenOver(Effect.never, { maxRetries: 1 })
        yield* a.reconnect
        yield* until("a's handler is interrupted", () => stopped.a)
        yield* advance("300 millis")
        assert.deepStrictEqual(yield* depth(b), { ...empty, inFlight: 1 })
        yield* Deferred.succeed(go, undefined)
        yield* ended(b)
        assert.deepStrictEqual(yield* depth(b), empty)
        assert.lengthOf(onB, 1)
      }))

    for (const [what, maxRetries, outcome] of [
      ["acknowledge", 1, Effect.void],
      ["retry", 3, Effect.fail("stale")],
      ["bury", 1, Effect.fail("stale")]
    ] as const) {
      test(`a stale worker cannot ${what} a job that someone else now has`, () =>
        Effect.gen(function* () {
          const end = yield* Deferred.make<void>()
          const { a, b, go, onA, onB } = yield* takenOver(Effect.andThen(Deferred.await(end), outcome), {
            // Burying is what a worker does that holds the job to be at its last attempt.
            maxRetries
          })
          yield* Deferred.succeed(end, undefined)
          yield* advance("100 millis")
          yield* a.reconnect
          yield* advance("2 seconds")
          assert.deepStrictEqual(yield* depth(b), { ...empty, inFlight: 1 }, "b still has it")
          yield* Deferred.succeed(go, undefined)
          yield* ended(b)
          assert.deepStrictEqual(yield* depth(b), empty, "b's success ended it")
          assert.deepStrictEqual([attempts(onA), attempts(onB)], [[1], [2]])
        }))
    }

    test("a lease is renewed while its handler runs: no second run", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(a, Task, { lease, process: handler(runs, () => Effect.sleep("2500 millis")) })
        yield* worker(b, Task, { lease, process: handler(runs, () => Effect.sleep("2500 millis")) })
        yield* publish(a, 1, { timeout: "10 seconds", maxRetries: 3 })
        yield* ended(a)
        assert.deepStrictEqual(attempts(runs), [1])
      }))

    if (!attemptsOutliveCuts) {
      test("a cut gives the job to another at once, as its next attempt; the end of the first is refused", () =>
        Effect.gen(function* () {
          const { a, b } = yield* instances
          const onA: Array<Run> = []
          const onB: Array<Run> = []
          yield* worker(a, Task, { lease: "1 minute", process: handler(onA, () => Effect.sleep("1500 millis")) })
          yield* publish(b, 1, { timeout: "10 seconds", maxRetries: 3 })
          yield* until("a has the job", () => onA.length === 1)
          yield* worker(b, Task, { lease: "1 minute", process: handler(onB, () => Effect.sleep("2 seconds")) })
          yield* a.disconnect
          yield* until("b has it", () => onB.length === 1)
          yield* a.reconnect
          yield* ended(b)
          assert.deepStrictEqual([attempts(onA), attempts(onB)], [[1], [2]])
        }))
    }

    whereAttemptsOutliveCuts("a cut shorter than the lease is survived: the attempt goes on and counts", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(a, Task, { lease: "3 seconds", process: handler(runs, () => Effect.sleep("1500 millis")) })
        yield* publish(a, 1, { timeout: "10 seconds", maxRetries: 3 })
        yield* until("a has the job", () => runs.length === 1)
        yield* worker(b, Task, { lease: "3 seconds", process: handler(runs, () => Effect.void) })
        yield* a.disconnect
        yield* advance("1 second")
        yield* a.reconnect
        yield* ended(b)
        assert.deepStrictEqual(attempts(runs), [1])
      })
    )

    test("a job whose worker is lost on every attempt becomes a dead letter, not an endless loop", () =>
      Effect.gen(function* () {
        const { instance } = yield* instances
        const runs: Array<Run> = []
        const publisher = yield* instance()
        yield* publish(publisher, 1, { id: "killer", maxRetries: 1, timeout: "1 minute" })
        for (let i = 1; i <= 2; i++) {
          const victim = yield* instance()
          yield* worker(victim, Task, { lease, process: handler(runs, () => Effect.never) })
          yield* until(`attempt ${i} runs`, () => runs.length === i)
          yield* victim.disconnect
        }
        const survivor = yield* instance()
        yield* worker(survivor, Task, { lease, process: handler(runs, () => Effect.void) })
        yield* dead(publisher, 1)
        assert.deepStrictEqual(attempts(runs), [1, 2])
        const letter = yield* theDeadLetter(publisher)
        assert.deepStrictEqual([letter.id, letter.reason, letter.attempts], ["killer", "WorkerLost", 2])
        assert.include(letter.firstError, "lost")
        assert.include(letter.lastError, "lost")
        assert.deepStrictEqual(yield* depth(publisher), { ...empty, dead: 1 })
      }))

    test("after an outage longer than every timeout, workers resume by themselves", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(a, Task, { lease, process: handler(runs, () => Effect.void) })
        yield* publish(a, 1)
        yield* until("it works before", () => runs.length === 1)
        yield* a.disconnect
        yield* publish(b, 2)
        yield* advance("13 seconds")
        assert.lengthOf(runs, 1)
        yield* a.reconnect
        yield* until("it works after", () => runs.length === 2)
        yield* publish(b, 3)
        yield* until("and goes on", () => runs.length === 3)
        yield* ended(b)
      }))

    whereAttemptsOutliveCuts(
      "what finished during an outage is acknowledged after it, when the lease still holds",
      () =>
        Effect.gen(function* () {
          const { a, b } = yield* instances
          const runs: Array<Run> = []
          const go = yield* Deferred.make<void>()
          yield* worker(a, Task, { concurrency: 5, process: handler(runs, () => Deferred.await(go)) })
          yield* publishAll(b, 5)
          yield* until("all run", () => runs.length === 5)
          yield* a.disconnect
          yield* Deferred.succeed(go, undefined)
          yield* advance("7 seconds")
          assert.strictEqual((yield* depth(b)).inFlight, 5)
          yield* a.reconnect
          yield* ended(b)
          assert.deepStrictEqual(yield* depth(b), empty)
          assert.lengthOf(runs, 5)
        })
    )
  })
}
