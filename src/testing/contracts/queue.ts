/**
 * The contract of EventQueue: every sentence of its guarantees, on any backend.
 *
 * Times are short where the backend has to live through them; the long defaults
 * (30 seconds and the like) are tested where time is virtual.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Scope from "effect/Scope"
import { type Cohort, EventQueue, Job } from "../../index.ts"
import type { Backend, TestInstance } from "./Backend.ts"
import { describeOn, eventually, unprintable } from "./support.ts"

const Numbered = Schema.Struct({ n: Schema.Number })
type Numbered = typeof Numbered.Type

const soon = Schedule.spaced("100 millis")

/** One failed attempt is the end of it. */
const Once = Job.make("task", Numbered)
/** Retries after 100 ms, as often as `maxRetries` of the publish says. */
const Task = Job.make("task", Numbered, { backoff: soon, timeout: "2 seconds" })

/** One call of a handler. */
interface Run {
  readonly n: number
  readonly id: string
  readonly attempt: number
  readonly maxAttempts: number
  readonly at: number
}

/** Keeps what a handler was called with, then goes on. */
const record = (runs: Array<Run>, { n }: Numbered, info: EventQueue.JobInfo) =>
  Effect.map(Clock.currentTimeMillis, (at) => {
    runs.push({ n, at, ...info })
  })

/** A handler that records its runs and does `then` in each. */
const handler =
  <E, R>(runs: Array<Run>, then: (n: number, info: EventQueue.JobInfo) => Effect.Effect<unknown, E, R>) =>
  (payload: Numbered, info: EventQueue.JobInfo) =>
    Effect.andThen(record(runs, payload, info), then(payload.n, info))

const attempts = (runs: ReadonlyArray<Run>) => runs.map((run) => run.attempt)
const numbers = (runs: ReadonlyArray<Run>) => runs.map((run) => run.n).sort((a, b) => a - b)

interface TestWorker {
  /** Closes the subscription's scope, and waits for it to drain. */
  readonly close: Effect.Effect<void>
}

/**
 * Subscribes in a scope of its own. At the end of the test the instance is
 * reconnected and the scope closed, without waiting for running handlers.
 */
const worker = <A, RD, RE, R, R2 = never>(
  instance: TestInstance,
  job: Job.Job<A, RD, RE>,
  options: EventQueue.SubscribeOptions<A, R, R2>
): Effect.Effect<
  TestWorker,
  EventQueue.EventQueueError,
  Exclude<Exclude<RD | R | R2, Scope.Scope>, Cohort.Services> | Scope.Scope
> =>
  Effect.gen(function* () {
    const scope = yield* Scope.make()
    const close = Scope.close(scope, Exit.void)
    yield* Effect.addFinalizer(() => Effect.andThen(instance.reconnect, close))
    const subscribe = Scope.provide(EventQueue.subscribe(job, { shutdownTimeout: 0, ...options }), scope)
    yield* instance.run(subscribe) as Effect.Effect<void, EventQueue.EventQueueError, never>
    return { close }
  })

const publish = (instance: TestInstance, n: number, options?: EventQueue.PublishOptions) =>
  instance.run(EventQueue.publish(Task, { n }, options))

const publishAll = (instance: TestInstance, count: number, options?: EventQueue.PublishOptions) =>
  Effect.forEach(
    Array.from({ length: count }, (_, n) => n),
    (n) => publish(instance, n, options)
  )

/** Again, if everybody was too busy to answer in time. */
const depth = (instance: TestInstance) => Effect.retry(instance.run(EventQueue.depth(Task)), { times: 3 })
const empty = { ready: 0, delayed: 0, inFlight: 0, dead: 0 }

const deadLetters = (instance: TestInstance, page?: EventQueue.Page) => instance.run(EventQueue.deadLetters(Task, page))

/** The only dead letter. */
const theDeadLetter = (instance: TestInstance) =>
  Effect.map(deadLetters(instance), (dead) => {
    assert.lengthOf(dead, 1)
    return dead[0]!
  })

const assertInvalid = (
  exit: Exit.Exit<unknown, EventQueue.EventQueueError>,
  field: string,
  what: string = field
): void => {
  const error = Exit.isFailure(exit) ? Option.getOrUndefined(Exit.findErrorOption(exit)) : undefined
  assert.isTrue(error instanceof EventQueue.EventQueueError, `${what}: fails typed`)
  assert.strictEqual(error!.reason._tag, "InvalidInput", what)
  assert.strictEqual(error!.reason._tag === "InvalidInput" ? error!.reason.field : "", field, what)
  assert.include(error!.message, field)
}

export const suite = (backend: Backend, options: { readonly propertyRuns?: number | undefined } = {}) => {
  const { advance, lateness: late } = backend
  const { attemptsOutliveCuts, deduplicates } = backend.features
  const within = <A, E>(body: Effect.Effect<A, E, Scope.Scope>) =>
    Effect.scoped(body).pipe(Effect.provide(backend.layer))

  const test = <A, E>(name: string, body: () => Effect.Effect<A, E, Scope.Scope>) =>
    it.effect(name, () => within(body()), 60_000)

  const whereAttemptsOutliveCuts: typeof test = (name, body) => {
    if (attemptsOutliveCuts) test(name, body)
  }
  const whereIdsDeduplicate: typeof test = (name, body) => {
    if (deduplicates) test(name, body)
  }

  const instances = Effect.gen(function* () {
    const { instance } = yield* backend.make
    return { a: yield* instance(), b: yield* instance(), instance }
  })

  const until = (what: string, condition: () => boolean) => eventually(backend, Effect.sync(condition), what)
  const ended = (instance: TestInstance) =>
    eventually(
      backend,
      Effect.map(depth(instance), (depth) => depth.ready + depth.delayed + depth.inFlight === 0),
      "every job has ended"
    )
  const dead = (instance: TestInstance, count: number) =>
    eventually(
      backend,
      Effect.map(depth(instance), (depth) => depth.dead === count),
      `${count} dead letters`
    )

  describeOn(backend, "EventQueue", () => {
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
          for (const millis of of(1))
            assert.isTrue(millis >= 290 && millis < 600 + late, `timed out after ${millis} ms`)
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
      { timeout: 120_000, arbitrary: { runs: options.propertyRuns ?? 20 } }
    )
  })
}
