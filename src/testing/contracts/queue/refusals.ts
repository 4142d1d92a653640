/** Bad input. */
import { assert, describe } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { EventQueue, Job } from "../../../index.ts"
import {
  assertInvalid,
  deadLetters,
  depth,
  empty,
  type Fixture,
  handler,
  Numbered,
  publish,
  type Run,
  Task,
  worker
} from "./fixture.ts"

export const tests = ({ advance, test, instances, dead }: Fixture): void => {
  describe("bad input is refused, naming the field, and nothing is stored", () => {
    const bad: Record<"timeout" | "delay" | "maxRetries" | "concurrency" | "keepId", ReadonlyArray<number>> = {
      timeout: [0, -1, Number.NaN, Number.POSITIVE_INFINITY],
      delay: [-1, Number.NaN, Number.POSITIVE_INFINITY],
      maxRetries: [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY],
      concurrency: [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY],
      keepId: [-1, Number.NaN, Number.POSITIVE_INFINITY]
    }

    test("in publish", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        for (const field of ["timeout", "delay", "maxRetries"] as const) {
          for (const value of bad[field]) {
            assertInvalid(yield* Effect.exit(publish(a, 1, { [field]: value })), field, `${field} ${value}`)
          }
        }
        assertInvalid(yield* Effect.exit(publish(a, 1, { timeout: Duration.infinity })), "timeout")
        assertInvalid(yield* Effect.exit(publish(a, 1, { delay: "nonsense" as never })), "delay")
        assertInvalid(yield* Effect.exit(publish(a, 1, { id: "" })), "id")
        assertInvalid(yield* Effect.exit(publish(a, 1, { id: 7 as never })), "id")
        assert.deepStrictEqual(yield* depth(a), empty)
      }))

    test("in the payload", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const Checked = Job.make("task", Schema.Struct({ n: Schema.Number.check(Schema.isGreaterThan(0)) }))
        for (const payload of [{ n: 0 }, { n: "1" as never }, undefined as never, null as never]) {
          assertInvalid(yield* Effect.exit(a.run(EventQueue.publish(Checked, payload))), "payload")
        }
        const circular: Record<string, unknown> = {}
        circular.self = circular
        const Anything = Job.make("task", Schema.Unknown)
        assertInvalid(yield* Effect.exit(a.run(EventQueue.publish(Anything, circular))), "payload")
        assert.deepStrictEqual(yield* depth(a), empty)
      }))

    test("in the job's declaration, at its first use", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const jobs: Array<readonly [field: string, job: Job.Job<Numbered>]> = [
          ["channel", Job.make("", Numbered)],
          ["channel", Job.make("x".repeat(10_000), Numbered)],
          ...(["timeout", "maxRetries", "keepId"] as const).flatMap((field) =>
            bad[field].map((value) => [field, Job.make("task", Numbered, { [field]: value })] as const)
          )
        ]
        for (const [field, job] of jobs) {
          const uses = {
            publish: EventQueue.publish(job, { n: 1 }),
            subscribe: Effect.scoped(EventQueue.subscribe(job, { process: () => Effect.void })),
            depth: EventQueue.depth(job),
            deadLetters: EventQueue.deadLetters(job),
            deadLetter: EventQueue.deadLetter(job, "x"),
            redrive: EventQueue.redrive(job, "all"),
            discard: EventQueue.discard(job, "all")
          }
          for (const [name, use] of Object.entries<
            Effect.Effect<unknown, EventQueue.EventQueueError, EventQueue.EventQueue>
          >(uses)) {
            assertInvalid(yield* Effect.exit(a.run(use)), field, `${name} with a bad ${field}`)
          }
        }
        assert.deepStrictEqual(yield* depth(a), empty)
      }))

    test("in subscribe, which then takes nothing", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        const runs: Array<Run> = []
        yield* publish(a, 1)
        const process = handler(runs, () => Effect.void)
        const refused = (field: string, value: unknown) =>
          Effect.map(Effect.exit(worker(a, Task, { process, [field]: value })), (exit) =>
            assertInvalid(exit, field, `${field} ${value}`)
          )
        for (const value of bad.concurrency) yield* refused("concurrency", value)
        for (const field of ["lease", "idleInterval"]) {
          for (const value of bad.timeout) yield* refused(field, value)
        }
        for (const value of bad.delay) yield* refused("shutdownTimeout", value)
        yield* advance("200 millis")
        assert.lengthOf(runs, 0)
        assert.deepStrictEqual(yield* depth(a), { ...empty, ready: 1 })
      }))

    test("in pages of dead letters", () =>
      Effect.gen(function* () {
        const { a } = yield* instances
        for (const offset of [-1, 0.5, Number.NaN]) {
          assertInvalid(yield* Effect.exit(deadLetters(a, { offset })), "offset")
        }
        for (const limit of [0, -1, 1.5, Number.NaN]) {
          assertInvalid(yield* Effect.exit(deadLetters(a, { limit })), "limit")
        }
      }))
  })
}
