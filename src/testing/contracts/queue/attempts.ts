/** Attempts, retries, timeouts, and payloads that do not decode. */
import { assert, describe } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import { EventQueue, Job } from "../../../index.ts"
import { eventually, unprintable } from "../support.ts"
import {
  attempts,
  depth,
  empty,
  type Fixture,
  handler,
  Numbered,
  numbers,
  Once,
  publish,
  type Run,
  soon,
  Task,
  theDeadLetter,
  worker
} from "./fixture.ts"

export const tests = ({ backend, advance, late, test, instances, until, ended, dead }: Fixture): void => {
  describe("attempts", () => {
    test("success acknowledges: the job is gone and does not run again", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(a, Task, { process: handler(runs, () => Effect.succeed("done")), lease: "300 millis" })
        yield* worker(b, Task, { process: handler(runs, () => Effect.succeed("done")), lease: "300 millis" })
        yield* publish(a, 1, { maxRetries: 3 })
        yield* ended(a)
        yield* advance("1 second")
        assert.deepStrictEqual(attempts(runs), [1])
        assert.deepStrictEqual(yield* depth(a), empty)
      }))

    test("a handler that snoozes gives its job back for a while, and the attempt does not count", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const runs: Array<Run> = []
        let snoozes = 3
        yield* worker(a, Task, {
          process: handler(
            runs,
            (): Effect.Effect<never, unknown> =>
              snoozes-- > 0 ? Job.snooze(snoozes === 2 ? 200 + late : 200) : Effect.fail("no")
          )
        })
        yield* publish(a, 1)
        yield* eventually(
          backend,
          Effect.map(depth(a), (depth) => depth.delayed === 1 && depth.ready + depth.inFlight + depth.dead === 0),
          "it waits"
        )
        yield* eventually(
          backend,
          Effect.map(depth(a), ({ dead }) => dead === 1),
          "a dead letter"
        )
        assert.deepStrictEqual(attempts(runs), [1, 1, 1, 1])
        const [dead] = yield* a.run(EventQueue.deadLetters(Task))
        assert.strictEqual(dead?.attempts, 1)
      }))

    test("a snooze of no sensible length is a failed attempt that says so", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        for (const delay of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* worker(a, Task, { process: () => Job.snooze(delay) })
              yield* publish(a, 1)
              yield* eventually(
                backend,
                Effect.map(depth(a), ({ dead }) => dead === 1),
                "a dead letter"
              )
            })
          )
          const [dead] = yield* a.run(EventQueue.deadLetters(Task))
          assert.include(dead?.lastError, "delay")
          yield* a.run(EventQueue.discard(Task, "all"))
        }
      }))

    const failures: Record<
      string,
      {
        readonly process: (attempt: number) => Effect.Effect<unknown, unknown>
        readonly reason: "Failed" | "TimedOut"
        readonly error: (attempt: number) => string
      }
    > = {
      failure: {
        process: (attempt) => Effect.fail(new Error(`boom ${attempt}`)),
        reason: "Failed",
        error: (attempt) => `boom ${attempt}`
      },
      defect: {
        process: (attempt) => Effect.die(`boom ${attempt}`),
        reason: "Failed",
        error: (attempt) => `boom ${attempt}`
      },
      throw: {
        process: (attempt) => {
          throw new Error(`boom ${attempt}`)
        },
        reason: "Failed",
        error: (attempt) => `boom ${attempt}`
      },
      "failure that cannot be printed": {
        process: () => Effect.andThen(Effect.yieldNow, Effect.fail(unprintable)),
        reason: "Failed",
        error: () => "cannot be printed"
      },
      "throw that cannot be printed": {
        process: () => {
          throw unprintable
        },
        reason: "Failed",
        error: () => "cannot be printed"
      },
      "interruption of its own": { process: () => Effect.interrupt, reason: "Failed", error: () => "interrupt" },
      timeout: { process: () => Effect.never, reason: "TimedOut", error: () => "timed out after 200 ms" }
    }
    for (const [what, { error, process, reason }] of Object.entries(failures)) {
      test(`a ${what} retries until maxRetries is used up, then the job is a dead letter`, () =>
        Effect.gen(function* () {
          const { a, b } = yield* instances
          const runs: Array<Run> = []
          yield* worker(b, Task, {
            process: (payload, info) => {
              runs.push({ ...info, n: payload.n, at: 0 })
              return process(info.attempt)
            }
          })
          yield* publish(a, 7, { id: "x", maxRetries: 2, timeout: "200 millis" })
          yield* dead(a, 1)
          yield* advance("500 millis")
          assert.deepStrictEqual(attempts(runs), [1, 2, 3])
          assert.deepStrictEqual(
            runs.map((run) => [run.id, run.maxAttempts]),
            [
              ["x", 3],
              ["x", 3],
              ["x", 3]
            ]
          )
          const letter = yield* theDeadLetter(a)
          assert.strictEqual(letter.id, "x")
          assert.strictEqual(letter.reason, reason)
          assert.strictEqual(letter.attempts, 3)
          assert.include(letter.firstError, error(1))
          assert.include(letter.lastError, error(3))
          assert.deepStrictEqual(letter.payload, Option.some({ n: 7 }))
          assert.deepStrictEqual(yield* depth(a), { ...empty, dead: 1 })
        }))
    }

    test("a success after failures ends the job", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(b, Task, {
          process: handler(runs, (_, { attempt }) => (attempt < 3 ? Effect.fail("again") : Effect.void))
        })
        yield* publish(a, 1, { maxRetries: 5 })
        yield* ended(a)
        assert.deepStrictEqual(attempts(runs), [1, 2, 3])
        assert.deepStrictEqual(yield* depth(a), empty)
      }))

    test("by default nothing is retried", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(b, Once, { process: handler(runs, () => Effect.fail("no")) })
        yield* a.run(EventQueue.publish(Once, { n: 1 }))
        yield* dead(a, 1)
        assert.strictEqual((yield* theDeadLetter(a)).attempts, 1)
        assert.lengthOf(runs, 1)
      }))

    test("the job's maxRetries and timeout hold unless publish says otherwise", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const Tuned = Job.make("task", Numbered, { maxRetries: 1, timeout: "300 millis", backoff: soon })
        const stops: Array<readonly [n: number, millis: number]> = []
        yield* worker(b, Tuned, {
          concurrency: 2,
          process: ({ n }) =>
            Effect.flatMap(Clock.currentTimeMillis, (start) =>
              Effect.onInterrupt(Effect.never, () =>
                Effect.map(Clock.currentTimeMillis, (end) => stops.push([n, end - start]))
              )
            )
        })
        yield* a.run(EventQueue.publish(Tuned, { n: 1 }))
        yield* a.run(EventQueue.publish(Tuned, { n: 2 }, { maxRetries: 0, timeout: "900 millis" }))
        yield* dead(a, 2)
        const of = (n: number) => stops.filter((stop) => stop[0] === n).map((stop) => stop[1])
        assert.lengthOf(of(1), 2, "one retry")
        for (const millis of of(1)) assert.isTrue(millis >= 290 && millis < 600 + late, `timed out after ${millis} ms`)
        assert.lengthOf(of(2), 1, "no retry")
        for (const millis of of(2))
          assert.isTrue(millis >= 890 && millis < 1_200 + late, `timed out after ${millis} ms`)
      }))

    /** When each attempt began, in milliseconds after the one before. */
    const gaps = (runs: ReadonlyArray<Run>) => runs.slice(1).map((run, i) => run.at - runs[i]!.at)

    test("the default backoff is exponential from 500 ms with factor 2, give or take a fifth", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(b, Once, { process: handler(runs, () => Effect.fail("no")) })
        yield* a.run(EventQueue.publish(Once, { n: 1 }, { maxRetries: 3 }))
        yield* dead(a, 1)
        gaps(runs).forEach((gap, i) => {
          const base = 500 * 2 ** i
          assert.isTrue(gap >= base * 0.8 && gap <= base * 1.2 + 200 + late, `retry ${i + 1} after ${gap} ms`)
        })
      }))

    test("backoff is the author's to choose; when the schedule ends, its last delay is kept", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        const backoff = Schedule.exponential("200 millis").pipe(Schedule.upTo({ times: 2 }))
        const Chosen = Job.make("task", Numbered, { backoff, maxRetries: 4 })
        yield* worker(b, Chosen, { process: handler(runs, () => Effect.fail("no")) })
        yield* a.run(EventQueue.publish(Chosen, { n: 1 }))
        yield* dead(a, 1)
        const wanted = [200, 400, 400, 400]
        assert.lengthOf(gaps(runs), wanted.length)
        gaps(runs).forEach((gap, i) => {
          assert.isTrue(gap >= wanted[i]! && gap < wanted[i]! + 150 + late, `retry ${i + 1} after ${gap} ms`)
        })
      }))

    test("a backoff that fails does not keep the job from being retried", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        const backoff = Schedule.addDelay(soon, () => Effect.die("broken schedule"))
        const Broken = Job.make("task", Numbered, { backoff, maxRetries: 2 })
        yield* worker(b, Broken, { process: handler(runs, () => Effect.fail("no")) })
        yield* a.run(EventQueue.publish(Broken, { n: 1 }))
        yield* dead(a, 1)
        assert.deepStrictEqual(attempts(runs), [1, 2, 3])
      }))

    test("retries wait in the broker: they survive the worker's closing and run on another instance", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const onA: Array<Run> = []
        const onB: Array<Run> = []
        const Slow = Job.make("task", Numbered, { backoff: Schedule.spaced(1_000 + late) })
        const first = yield* worker(a, Slow, { process: handler(onA, () => Effect.fail("first")) })
        yield* publish(a, 1, { maxRetries: 1 })
        yield* eventually(
          backend,
          Effect.map(depth(b), ({ delayed }) => delayed === 1),
          "the retry waits"
        )
        assert.deepStrictEqual(yield* depth(b), { ...empty, delayed: 1 })
        yield* first.close
        yield* a.close
        yield* worker(b, Task, { process: handler(onB, () => Effect.void) })
        yield* until("attempt 2 ran", () => onB.length === 1)
        yield* ended(b)
        assert.deepStrictEqual([attempts(onA), attempts(onB)], [[1], [2]])
      }))
  })

  describe("what does not decode", () => {
    const Text = Job.make("task", Schema.Struct({ text: Schema.String }))
    const Throwing = Job.make(
      "task",
      Schema.Number.pipe(
        Schema.decodeTo(
          Schema.Number,
          SchemaTransformation.transform({
            decode: (n: number): number => {
              if (n === 13) throw new Error("unlucky")
              return n
            },
            encode: (n: number) => n
          })
        )
      ),
      { maxRetries: 3 }
    )

    test("is buried at once as Undecodable, and the next job runs", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* a.run(EventQueue.publish(Text, { text: "?" }, { id: "odd", maxRetries: 5 }))
        yield* publish(a, 2)
        yield* worker(b, Task, { process: handler(runs, () => Effect.void) })
        yield* until("the next job ran", () => runs.length === 1)
        yield* ended(a)
        const letter = yield* theDeadLetter(a)
        assert.deepStrictEqual([letter.id, letter.reason, letter.attempts], ["odd", "Undecodable", 1])
        assert.deepStrictEqual(letter.payload, Option.none())
        assert.deepStrictEqual(JSON.parse(letter.encoded), { text: "?" })
        assert.isAbove(letter.lastError.length, 0)
        assert.deepStrictEqual(numbers(runs), [2])
      }))

    test("a Schema that throws is no crash", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const seen: Array<number> = []
        yield* a.run(EventQueue.publish(Throwing, 13))
        yield* a.run(EventQueue.publish(Throwing, 14))
        yield* worker(b, Throwing, { process: (n) => Effect.sync(() => seen.push(n)) })
        yield* until("the next job ran", () => seen.length === 1)
        yield* ended(a)
        const [letter] = yield* a.run(EventQueue.deadLetters(Throwing))
        assert.strictEqual(letter?.reason, "Undecodable")
        assert.deepStrictEqual(letter?.payload, Option.none())
        assert.deepStrictEqual(seen, [14])
      }))
  })
}
