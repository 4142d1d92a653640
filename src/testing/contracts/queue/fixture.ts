/** What the tests of `EventQueue` share. */
import { assert, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { type Cohort, EventQueue, Job } from "../../../index.ts"
import type { Backend, TestInstance } from "../Backend.ts"
import { eventually } from "../support.ts"

export const Numbered = Schema.Struct({ n: Schema.Number })
export type Numbered = typeof Numbered.Type

export const soon = Schedule.spaced("100 millis")

/** One failed attempt is the end of it. */
export const Once = Job.make("task", Numbered)
/** Retries after 100 ms, as often as `maxRetries` of the publish says. */
export const Task = Job.make("task", Numbered, { backoff: soon, timeout: "2 seconds" })

/** One call of a handler. */
export interface Run {
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
export const handler =
  <E, R>(runs: Array<Run>, then: (n: number, info: EventQueue.JobInfo) => Effect.Effect<unknown, E, R>) =>
  (payload: Numbered, info: EventQueue.JobInfo) =>
    Effect.andThen(record(runs, payload, info), then(payload.n, info))

export const attempts = (runs: ReadonlyArray<Run>) => runs.map((run) => run.attempt)
export const numbers = (runs: ReadonlyArray<Run>) => runs.map((run) => run.n).sort((a, b) => a - b)

export interface TestWorker {
  /** Closes the subscription's scope, and waits for it to drain. */
  readonly close: Effect.Effect<void>
}

/**
 * Subscribes in a scope of its own. At the end of the test the instance is
 * reconnected and the scope closed, without waiting for running handlers.
 */
export const worker = <A, RD, RE, R, R2 = never>(
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

export const publish = (instance: TestInstance, n: number, options?: EventQueue.PublishOptions) =>
  instance.run(EventQueue.publish(Task, { n }, options))

export const publishAll = (instance: TestInstance, count: number, options?: EventQueue.PublishOptions) =>
  Effect.forEach(
    Array.from({ length: count }, (_, n) => n),
    (n) => publish(instance, n, options)
  )

/** Again, if everybody was too busy to answer in time. */
export const depth = (instance: TestInstance) => Effect.retry(instance.run(EventQueue.depth(Task)), { times: 3 })
export const empty = { ready: 0, delayed: 0, inFlight: 0, dead: 0 }

export const deadLetters = (instance: TestInstance, page?: EventQueue.Page) =>
  instance.run(EventQueue.deadLetters(Task, page))

/** The only dead letter. */
export const theDeadLetter = (instance: TestInstance) =>
  Effect.map(deadLetters(instance), (dead) => {
    assert.lengthOf(dead, 1)
    return dead[0]!
  })

export const assertInvalid = (
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

/** What the tests of one backend share. */
export const make = (backend: Backend) => {
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

  return {
    backend,
    advance,
    late,
    attemptsOutliveCuts,
    deduplicates,
    within,
    test,
    whereAttemptsOutliveCuts,
    whereIdsDeduplicate,
    instances,
    until,
    ended,
    dead
  }
}

export type Fixture = ReturnType<typeof make>
