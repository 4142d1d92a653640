/** Random histories: nothing is lost, nothing ends twice. */
import { assert, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { EventQueue, Job } from "../../../index.ts"
import type { TestInstance } from "../Backend.ts"
import { eventually } from "../support.ts"
import { empty, type Fixture, soon, type TestWorker, worker } from "./fixture.ts"

export const tests = (
  { backend, advance, late, within, ended, dead }: Fixture,
  propertyRuns: number | undefined
): void => {
  // --- whatever happens ---

  const Action = Schema.Union([
    Schema.TaggedStruct("publish", {
      maxRetries: Schema.Literals([0, 1, 2]),
      delay: Schema.Literals([0, 150]),
      /** What each attempt does; the last one goes for those after it. */
      script: Schema.NonEmptyArray(Schema.Literals(["succeed", "sleep", "fail", "die", "hang"]))
    }),
    Schema.TaggedStruct("restart", { instance: Schema.Literals([0, 1, 2]) }),
    Schema.TaggedStruct("disconnect", { instance: Schema.Literals([0, 1, 2]) }),
    Schema.TaggedStruct("reconnect", { instance: Schema.Literals([0, 1, 2]) }),
    Schema.TaggedStruct("wait", { millis: Schema.Literals([20, 120, 500, 1_500]) })
  ])

  it.effect.prop(
    "no job is lost, none ends twice, and none gets more attempts than it has, whatever happens",
    { actions: Schema.Array(Action) },
    ({ actions }) =>
      within(
        Effect.gen(function* () {
          const { instance } = yield* backend.make
          const observer = yield* instance()
          const lease = "400 millis"
          const job = Job.make("task", Schema.Struct({ n: Schema.Number }), { backoff: soon, timeout: "300 millis" })
          type Publish = Extract<typeof Action.Type, { _tag: "publish" }>
          const violations: Array<string> = []
          interface State {
            /** When it was disconnected. */
            readonly cuts: Array<number>
            connected: boolean
          }
          interface Success {
            readonly state: State
            readonly cuts: number
            readonly at: number
          }
          const jobs: Array<Publish & { attempts: Array<number>; successes: Array<Success> }> = []
          /** On a server an acknowledgement is on its way for some moments. */
          const moments = Math.min(late, 500)
          /** Whether an attempt was acknowledged by its success: it saw no cut. */
          const isFinal = ({ successes }: (typeof jobs)[number]) =>
            successes.some(({ at, cuts, state }) => !(state.cuts[cuts]! <= at + moments))

          const open = (at: TestInstance, state: State) =>
            worker(at, job, {
              lease,
              concurrency: 2,
              process: ({ n }, { attempt }) =>
                Effect.gen(function* () {
                  const entry = jobs[n]!
                  const cuts = state.cuts.length
                  const connected = state.connected
                  if (isFinal(entry)) violations.push(`job ${n} runs after its acknowledgement`)
                  if (attempt > entry.maxRetries + 1) violations.push(`attempt ${attempt} of job ${n}`)
                  entry.attempts.push(attempt)
                  switch (entry.script[Math.min(attempt, entry.script.length) - 1]!) {
                    case "fail":
                      return yield* Effect.fail("failed")
                    case "die":
                      return yield* Effect.die("died")
                    case "hang":
                      return yield* Effect.never
                    case "sleep":
                      yield* Effect.sleep("100 millis")
                  }
                  const at = yield* Clock.currentTimeMillis
                  const saw = connected && state.cuts.length === cuts ? cuts : Math.max(0, cuts - 1)
                  entry.successes.push({ state, cuts: saw, at })
                })
            })
          const cluster: Array<State & { at: TestInstance; worker: TestWorker }> = []
          for (let i = 0; i < 3; i++) {
            const at = yield* instance()
            const state: State & { at: TestInstance } = { at, cuts: [], connected: true }
            cluster.push(Object.assign(state, { worker: yield* open(at, state) }))
          }

          for (const action of actions) {
            switch (action._tag) {
              case "publish": {
                const n = jobs.push({ ...action, attempts: [], successes: [] }) - 1
                const { delay, maxRetries } = action
                yield* observer.run(EventQueue.publish(job, { n }, { id: `job-${n}`, delay, maxRetries }))
                break
              }
              case "restart": {
                const member = cluster[action.instance]!
                if (!member.connected) break
                yield* member.worker.close
                member.worker = yield* open(member.at, member)
                break
              }
              case "disconnect": {
                const member = cluster[action.instance]!
                member.cuts.push(yield* Clock.currentTimeMillis)
                member.connected = false
                yield* member.at.disconnect
                break
              }
              case "reconnect": {
                const member = cluster[action.instance]!
                member.connected = true
                yield* member.at.reconnect
                break
              }
              case "wait":
                yield* advance(action.millis)
            }
          }
          for (const member of cluster) {
            member.connected = true
            yield* member.at.reconnect
          }
          yield* eventually(
            backend,
            Effect.map(
              observer.run(EventQueue.depth(job)),
              ({ delayed, inFlight, ready }) => ready + delayed + inFlight === 0
            ),
            "every job has ended",
            { step: "100 millis", steps: 300 }
          )
          yield* advance("1 second")

          const letters = yield* observer.run(EventQueue.deadLetters(job, { limit: 1_000 }))
          const deadById = new Map(letters.map((letter) => [letter.id, letter]))
          assert.strictEqual(deadById.size, letters.length, "one dead letter for each id")
          assert.deepStrictEqual(violations, [])
          jobs.forEach((entry, n) => {
            const { attempts, maxRetries, successes } = entry
            const letter = deadById.get(`job-${n}`)
            assert.isTrue(letter !== undefined || successes.length > 0, `job ${n} is lost`)
            if (letter === undefined) return
            assert.isFalse(isFinal(entry), `job ${n} ended twice`)
            assert.strictEqual(letter.attempts, maxRetries + 1, `job ${n} has had all its attempts`)
            assert.isAtMost(new Set(attempts).size, letter.attempts)
          })
          assert.deepStrictEqual(yield* observer.run(EventQueue.depth(job)), { ...empty, dead: letters.length })
        })
      ),
    { timeout: 120_000, arbitrary: { runs: propertyRuns ?? 20 } }
  )
}
