/** Publishing, delays, and ids that deduplicate. */
import { assert, describe } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { EventQueue, Job } from "../../../index.ts"
import { eventually } from "../support.ts"
import {
  deadLetters,
  depth,
  empty,
  type Fixture,
  handler,
  Numbered,
  numbers,
  publish,
  type Run,
  soon,
  Task,
  worker
} from "./fixture.ts"

export const tests = ({
  backend,
  advance,
  late,
  deduplicates,
  within,
  test,
  instances,
  until,
  ended
}: Fixture): void => {
  describe("publishing", () => {
    test("needs no subscription, neither here nor elsewhere: the job waits for one", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* publish(a, 1)
        assert.deepStrictEqual(yield* depth(b), { ...empty, ready: 1 })
        yield* worker(b, Task, { process: handler(runs, () => Effect.void) })
        yield* until("the job runs", () => runs.length === 1)
      }))

    test("answers with the job's id, its own for every job unless given", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const first = yield* publish(a, 1)
        const second = yield* publish(a, 1)
        assert.notStrictEqual(first.id, second.id)
        assert.deepStrictEqual(yield* publish(a, 1, { id: "mine" }), { id: "mine", duplicate: false })
        assert.strictEqual((yield* depth(a)).ready, 3)
      }))

    test("process gets the decoded payload and { id, attempt }", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const Dated = Job.make("dated", Schema.Struct({ at: Schema.Date, name: Schema.String }), { maxRetries: 2 })
        const got: Array<unknown> = []
        yield* worker(b, Dated, { process: (payload, info) => Effect.sync(() => got.push([payload, info])) })
        yield* a.run(EventQueue.publish(Dated, { at: new Date(7), name: "é:*" }, { id: "x" }))
        yield* until("the job runs", () => got.length === 1)
        assert.deepStrictEqual(got, [
          [
            { at: new Date(7), name: "é:*" },
            { id: "x", attempt: 1, maxAttempts: 3 }
          ]
        ])
      }))

    test("changing the payload after publishing, or in a handler, changes no other run", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const Bag = Job.make("bag", Schema.Struct({ items: Schema.mutable(Schema.Array(Schema.Number)) }), {
          backoff: soon,
          maxRetries: 1
        })
        const seen: Array<ReadonlyArray<number>> = []
        const payload = { items: [1] }
        yield* a.run(EventQueue.publish(Bag, payload))
        payload.items.push(2)
        yield* worker(b, Bag, {
          process: ({ items }, { attempt }) =>
            Effect.suspend(() => {
              seen.push([...items])
              items.push(3)
              return attempt === 1 ? Effect.fail("again") : Effect.void
            })
        })
        yield* until("the job ran twice", () => seen.length === 2)
        assert.deepStrictEqual(seen, [[1], [1]])
      }))

    test("while cut off fails typed within 5 seconds, like every other operation", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        yield* publish(a, 1)
        yield* a.disconnect
        const operations: Record<string, Effect.Effect<unknown, EventQueue.EventQueueError, Scope.Scope>> = {
          publish: publish(a, 2),
          depth: a.run(EventQueue.depth(Task)),
          deadLetters: deadLetters(a),
          deadLetter: a.run(EventQueue.deadLetter(Task, "x")),
          redrive: a.run(EventQueue.redrive(Task, "all")),
          discard: a.run(EventQueue.discard(Task, "all")),
          subscribe: worker(a, Task, { process: () => Effect.void })
        }
        const fibers = yield* Effect.forEach(Object.entries(operations), ([name, operation]) =>
          Effect.map(Effect.forkChild(Effect.flip(operation)), (fiber) => ({ name, fiber }))
        )
        yield* advance("5100 millis")
        for (const { name, fiber } of fibers) {
          assert.isDefined(fiber.pollUnsafe(), `${name} has answered`)
          const error = yield* Fiber.join(fiber)
          assert.strictEqual(error._tag, "EventQueueError", name)
          assert.strictEqual(error.reason._tag, "Unavailable", name)
          assert.include(error.message, "unavailable")
        }
        yield* a.reconnect
        assert.isTrue((yield* depth(a)).ready >= 1)
      }))

    test("a job waits for its delay, and not longer", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        yield* worker(b, Task, { process: handler(runs, () => Effect.void) })
        const start = yield* Clock.currentTimeMillis
        yield* publish(a, 1, { delay: 600 + late })
        assert.deepStrictEqual(yield* depth(a), { ...empty, delayed: 1 })
        yield* publish(a, 2)
        yield* until("both ran", () => runs.length === 2)
        assert.deepStrictEqual(
          runs.map((run) => run.n),
          [2, 1]
        )
        const waited = runs[1]!.at - start
        assert.isTrue(waited >= 600 + late && waited < 1_000 + 2 * late, `waited ${waited} ms`)
      }))

    test("two apps share a backend unseen", () =>
      Effect.gen(function* () {
        const { a, instance } = yield* instances
        const stranger = yield* instance({ app: "stranger" })
        const runs: Array<Run> = []
        yield* worker(stranger, Task, { process: handler(runs, () => Effect.void) })
        yield* publish(a, 1, { id: "x" })
        assert.deepStrictEqual(yield* stranger.run(EventQueue.publish(Task, { n: 2 }, { id: "x" })), {
          id: "x",
          duplicate: false
        })
        yield* until("the stranger's job ran", () => runs.length > 0)
        yield* advance("200 millis")
        assert.deepStrictEqual(numbers(runs), [2])
        assert.strictEqual((yield* depth(a)).ready, 1)
        assert.deepStrictEqual(yield* depth(stranger), empty)
      }))

    test("channels are apart, whatever characters their names hold", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const names = ["x", "x:y", "x%3Ay", "x*", "x[1]", "é {x}", "\ud800", "\udfff"]
        for (const name of names) {
          const job = Job.make(name, Numbered)
          assert.deepStrictEqual(yield* a.run(EventQueue.depth(job)), empty, name)
          yield* a.run(EventQueue.publish(job, { n: 1 }, { id: "same" }))
          assert.deepStrictEqual(yield* a.run(EventQueue.depth(job)), { ...empty, ready: 1 }, name)
        }
      }))
  })

  describe("ids", () => {
    if (!deduplicates) {
      test("do not deduplicate: each is a job of its own", () =>
        Effect.gen(function* () {
          const { a, b } = yield* instances
          const runs: Array<Run> = []
          assert.isFalse((yield* publish(a, 1, { id: "x" })).duplicate)
          assert.isFalse((yield* publish(b, 2, { id: "x" })).duplicate)
          yield* worker(b, Task, { process: handler(runs, () => Effect.void) })
          yield* until("both run", () => runs.length === 2)
          yield* ended(a)
          assert.deepStrictEqual(numbers(runs), [1, 2])
        }))
      return
    }

    test("an id deduplicates while its job lives: waiting, running, and waiting to retry", () =>
      Effect.gen(function* () {
        const { a, b } = yield* instances
        const runs: Array<Run> = []
        const go = yield* Deferred.make<void>()
        const duplicate = Effect.map(publish(b, 99, { id: "x" }), (published) => published.duplicate)

        assert.isFalse((yield* publish(a, 1, { id: "x", delay: 300 + late, maxRetries: 1 })).duplicate)
        assert.isTrue(yield* duplicate, "delayed")
        yield* advance(400 + late)
        assert.isTrue(yield* duplicate, "ready")
        yield* worker(a, Job.make("task", Numbered, { backoff: Schedule.spaced(500 + late) }), {
          process: handler(runs, (_, { attempt }) =>
            attempt === 1 ? Effect.andThen(Deferred.await(go), Effect.fail("again")) : Effect.void
          )
        })
        yield* until("attempt 1 runs", () => runs.length === 1)
        assert.isTrue(yield* duplicate, "running")
        yield* Deferred.succeed(go, undefined)
        yield* eventually(
          backend,
          Effect.map(depth(a), ({ delayed }) => delayed === 1),
          "the retry waits"
        )
        assert.isTrue(yield* duplicate, "waiting to retry")
        yield* ended(a)
        assert.deepStrictEqual(
          runs.map((run) => [run.n, run.attempt]),
          [
            [1, 1],
            [1, 2]
          ]
        )
        assert.isFalse(yield* duplicate, "ended")
      }))

    for (const [how, end] of [
      ["success", Effect.void],
      ["death", Effect.fail("no")]
    ] as const) {
      test(`an id deduplicates for keepId after its job's ${how}, and not longer`, () =>
        Effect.gen(function* () {
          const { a, b } = yield* instances
          const Kept = Job.make("task", Numbered, { keepId: 1_000 + late })
          const runs: Array<Run> = []
          yield* worker(b, Kept, { process: handler(runs, () => end) })
          const again = Effect.map(a.run(EventQueue.publish(Kept, { n: 1 }, { id: "x" })), (it) => it.duplicate)
          assert.isFalse(yield* again)
          yield* until("the job ran", () => runs.length === 1)
          yield* ended(a)
          assert.isTrue(yield* again, "at once after its end")
          yield* advance("500 millis")
          assert.isTrue(yield* again, "half-way through keepId")
          yield* advance(700 + late)
          assert.isFalse(yield* again, "after keepId")
          yield* until("the new job ran", () => runs.length === 2)
        }))
    }
  })
}
