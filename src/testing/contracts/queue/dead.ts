/** Dead letters: listed, redriven, discarded. */
import { assert, describe } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { EventQueue } from "../../../index.ts"
import { eventually } from "../support.ts"
import {
  attempts,
  deadLetters,
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
  backend,
  advance,
  late,
  test,
  whereIdsDeduplicate,
  instances,
  until,
  ended,
  dead
}: Fixture): void => {
  describe("dead letters", () => {
    /** Five dead letters, `d0` to `d4`, and no worker. */
    const fiveDead = Effect.gen(function* () {
      const { a, b } = yield* instances
      const failing = yield* worker(b, Task, { process: ({ n }) => Effect.fail(new Error(`broken ${n}`)) })
      for (let n = 0; n < 5; n++) {
        yield* publish(a, n, { id: `d${n}` })
        yield* dead(a, n + 1)
        yield* advance("10 millis")
      }
      yield* failing.close
      return { a, b }
    })
    const ids = (letters: ReadonlyArray<EventQueue.DeadLetter<unknown>>) => letters.map((letter) => letter.id)

    test("are listed oldest first, in pages", () =>
      Effect.gen(function* () {
        const { a } = yield* fiveDead
        assert.deepStrictEqual(ids(yield* deadLetters(a)), ["d0", "d1", "d2", "d3", "d4"])
        assert.deepStrictEqual(ids(yield* deadLetters(a, { limit: 2 })), ["d0", "d1"])
        assert.deepStrictEqual(ids(yield* deadLetters(a, { offset: 3 })), ["d3", "d4"])
        assert.deepStrictEqual(ids(yield* deadLetters(a, { offset: 1, limit: 3 })), ["d1", "d2", "d3"])
        assert.deepStrictEqual(ids(yield* deadLetters(a, { offset: 9 })), [])
      }))

    test("can be inspected one by one", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        yield* worker(b, Task, {
          process: (_, { attempt }) => (attempt === 1 ? Effect.fail(new Error("first")) : Effect.die("last"))
        })
        const published = yield* Clock.currentTimeMillis
        yield* publish(a, 7, { id: "x", maxRetries: 1 })
        yield* dead(a, 1)
        const found = yield* a.run(EventQueue.deadLetter(Task, "x"))
        assert.isTrue(Option.isSome(found))
        const letter = Option.getOrThrow(found)
        assert.deepStrictEqual(
          [letter.id, letter.attempts, letter.reason, letter.payload, JSON.parse(letter.encoded)],
          ["x", 2, "Failed", Option.some({ n: 7 }), { n: 7 }]
        )
        assert.include(letter.firstError, "first")
        assert.include(letter.lastError, "last")
        const publishedAt = letter.publishedAt.epochMilliseconds
        const diedAt = letter.diedAt.epochMilliseconds
        assert.isAtMost(Math.abs(publishedAt - published), 1_000)
        assert.isAtLeast(diedAt - publishedAt, 90, "died after its retry's backoff")
        assert.deepStrictEqual(yield* a.run(EventQueue.deadLetter(Task, "unknown")), Option.none())
      }))

    for (const [what, which, count] of [
      ["one", ["d1"], 1],
      ["some, passing over what is not dead", ["d0", "d3", "unknown", "d3"], 2],
      ["all", "all", 5]
    ] as const) {
      test(`are redriven: ${what}`, () =>
        Effect.gen(function* () {
          const { a, b } = yield* fiveDead
          const runs: Array<Run> = []
          assert.strictEqual(yield* a.run(EventQueue.redrive(Task, which)), count)
          assert.deepStrictEqual(yield* depth(a), { ...empty, ready: count, dead: 5 - count })
          yield* worker(b, Task, { process: handler(runs, () => Effect.void) })
          yield* ended(a)
          const all = ["d0", "d1", "d2", "d3", "d4"]
          const redriven = which === "all" ? all : all.filter((id) => (which as ReadonlyArray<string>).includes(id))
          assert.deepStrictEqual(runs.map((run) => run.id).sort(), redriven)
          assert.deepStrictEqual(
            ids(yield* deadLetters(a)),
            all.filter((id) => !redriven.includes(id))
          )
        }))

      test(`are discarded: ${what}`, () =>
        Effect.gen(function* () {
          const { a, b } = yield* fiveDead
          const runs: Array<Run> = []
          assert.strictEqual(yield* a.run(EventQueue.discard(Task, which)), count)
          assert.deepStrictEqual(yield* depth(a), { ...empty, dead: 5 - count })
          yield* worker(b, Task, { process: handler(runs, () => Effect.void) })
          yield* advance("200 millis")
          assert.lengthOf(runs, 0)
        }))
    }

    test("start anew when redriven: all attempts before them, errors forgotten", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        let round = 1
        yield* worker(b, Task, {
          process: handler(runs, (_, { attempt }) => Effect.fail(new Error(`round ${round} attempt ${attempt}`)))
        })
        yield* publish(a, 1, { id: "x", maxRetries: 1, delay: "1 second" })
        yield* dead(a, 1)
        round = 2
        yield* a.run(EventQueue.redrive(Task, ["x"]))
        const redriven = yield* Clock.currentTimeMillis
        yield* until("all attempts ran", () => runs.length === 4)
        assert.isBelow(runs[2]!.at - redriven, 500 + late, "the first run's delay is not repeated")
        yield* dead(a, 1)
        assert.deepStrictEqual(attempts(runs), [1, 2, 1, 2])
        const letter = yield* theDeadLetter(a)
        assert.strictEqual(letter.attempts, 2)
        assert.include(letter.firstError, "round 2 attempt 1")
        assert.include(letter.lastError, "round 2 attempt 2")
      }))

    whereIdsDeduplicate("whose id lives again are passed over by redrive, and stay", () =>
      Effect.gen(function* () {
        const { a } = yield* fiveDead
        assert.isFalse((yield* publish(a, 10, { id: "d2" })).duplicate, "a dead job's id is free")
        assert.strictEqual(yield* a.run(EventQueue.redrive(Task, ["d2"])), 0)
        assert.strictEqual(yield* a.run(EventQueue.redrive(Task, "all")), 4)
        assert.deepStrictEqual(ids(yield* deadLetters(a)), ["d2"])
      })
    )

    test("of one id: the latest replaces the older", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        yield* worker(b, Task, { process: ({ n }) => Effect.fail(new Error(`broken ${n}`)) })
        yield* publish(a, 1, { id: "x" })
        yield* dead(a, 1)
        yield* publish(a, 2, { id: "x" })
        yield* ended(a)
        assert.deepStrictEqual((yield* theDeadLetter(a)).payload, Option.some({ n: 2 }))
        yield* publish(a, 3, { id: "y" })
        yield* dead(a, 2)
        yield* advance("10 millis")
        yield* publish(a, 4, { id: "x" })
        yield* ended(a)
        assert.deepStrictEqual(ids(yield* deadLetters(a)), ["y", "x"], "and is the younger one")
      }))

    test("depth counts what is ready, delayed, in flight and dead", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(b, Task, {
          concurrency: 2,
          process: handler(runs, (n) => (n < 0 ? Effect.fail("no") : Effect.never))
        })
        yield* publish(a, -1)
        yield* dead(a, 1)
        yield* publishAll(a, 5, { timeout: "1 minute" })
        yield* publish(a, 9, { delay: "1 minute" })
        yield* until("two run", () => runs.length === 3)
        // A worker may have taken one ahead, which it gives back.
        yield* eventually(
          backend,
          Effect.map(depth(b), ({ ready }) => ready === 3),
          "three are ready"
        )
        assert.deepStrictEqual(yield* depth(b), { ready: 3, delayed: 1, inFlight: 2, dead: 1 })
      }))
  })
}
