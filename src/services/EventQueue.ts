/**
 * A queue of jobs with retries and dead letters.
 *
 * ```ts
 * const RunTask = Job.make("task", Schema.Struct({ id: Schema.String }), { maxRetries: 3, timeout: "1 minute" })
 *
 * yield* EventQueue.subscribe(RunTask, { concurrency: 3, process: ({ id }, { attempt }) => tasks.run(id, attempt) })
 * yield* EventQueue.publish(RunTask, { id: "42" })
 * ```
 *
 * Guarantees:
 *
 * - **At least once.** `publish` succeeds only when the broker has the job; from then on it survives
 *   the death of any worker. Publishing needs no subscription.
 * - **Attempts.** Success acknowledges. Failure, defect or timeout (the handler is interrupted) retries
 *   after `backoff` until `maxRetries` is used up; then the job is a dead letter, with the reason, the
 *   number of attempts, the first and the last error. Retries wait in the broker, not in the process.
 * - **Ids.** A job published with the `id` of a living one, or of one that ended less than `keepId`
 *   ago, is a duplicate and is not stored.
 * - **Leases.** A worker that dies is noticed within one `lease` (at once where the broker sees the
 *   connection go). A job that kills its process every time becomes a dead letter after its attempts.
 *   A worker that was paused past its lease can no longer settle a job that someone else now has; its
 *   handler is interrupted.
 * - **Concurrency** holds per subscription. `idle` is asked before taking: while it is `false`, this
 *   subscription takes nothing, and the others get the jobs.
 * - **Closing** the scope drains: nothing new is taken, running handlers may finish for
 *   `shutdownTimeout`, then they are interrupted and their jobs given back, the attempt not counted.
 *
 * Handlers must be idempotent: a crash between the handler's end and the acknowledgement runs the job
 * again. A handler that does not stop within 5 seconds of being interrupted is left behind: its attempt
 * is over, but its place in `concurrency` stays taken until it ends.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import type * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as References from "effect/References"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import {
  type DeadJob,
  type DeathReason,
  type Delivery,
  type Depth,
  EventQueueStore,
  type Outcome,
  type Settlement,
  type Worker
} from "./EventQueueStore.ts"
import { Instance } from "./Instance.ts"
import { awaitStop, stopGrace } from "./internal/fibers.ts"
import { settled } from "./internal/settled.ts"
import { traced } from "./internal/telemetry.ts"
import * as Timers from "./internal/Timers.ts"
import * as Validate from "./internal/validate.ts"
import { defaultBackoff, type Job } from "./Job.ts"
import * as Metrics from "./Metrics.ts"
import { InvalidInput, Unavailable } from "./Reason.ts"

/**
 * What can go wrong with a queue. `reason` tells which: `InvalidInput` or `Unavailable`.
 *
 * @since 0.1.0
 */
export class EventQueueError extends Schema.TaggedError<EventQueueError>("cohort/EventQueueError")("EventQueueError", {
  reason: Schema.Union([InvalidInput, Unavailable])
}) {
  override readonly cause: unknown = this.reason.cause
  override get message(): string {
    return this.reason.message
  }
}

/**
 * Options of {@link publish}.
 *
 * @since 0.1.0
 */
export interface PublishOptions {
  /** Deduplicates while the job lives and for `keepId` after. Default: a random UUID. */
  readonly id?: string | undefined
  /** Postpones the first run; zero or more, finite. Default 0. */
  readonly delay?: Duration.Input | undefined
  /** Of one attempt; positive and finite. Default: the job's (15 seconds). */
  readonly timeout?: Duration.Input | undefined
  /** Default: the job's (0). */
  readonly maxRetries?: number | undefined
}

/**
 * What {@link publish} answers: the job's id, and whether it was there already.
 *
 * @since 0.1.0
 */
export interface Published {
  readonly id: string
  readonly duplicate: boolean
}

/**
 * What a handler is told about its job.
 *
 * @since 0.1.0
 */
export interface JobInfo {
  readonly id: string
  /** 1-based. */
  readonly attempt: number
  /** Attempts the job gets in all. */
  readonly maxAttempts: number
}

/**
 * Options of {@link subscribe}.
 *
 * @since 0.1.0
 */
export interface SubscribeOptions<A, R, R2 = never> {
  /** Runs a job. Any failure or defect is a failed attempt. */
  readonly process: (payload: A, info: JobInfo) => Effect.Effect<unknown, unknown, R>
  /** How many jobs this subscription runs at a time. Default 1. */
  readonly concurrency?: number | "unbounded" | undefined
  /** Asked before taking; while it answers `false`, nothing is taken. Default: always `true`. */
  readonly idle?: Effect.Effect<boolean, never, R2> | undefined
  /** How soon `idle` is asked again after `false`; positive. Default 500 ms. */
  readonly idleInterval?: Duration.Input | undefined
  /** How long the broker waits for a worker that went silent; positive and finite, renewed every third. Default 30 seconds. */
  readonly lease?: Duration.Input | undefined
  /** How long running handlers may take to finish when the scope closes; zero or more. Default 30 seconds. */
  readonly shutdownTimeout?: Duration.Input | undefined
}

/**
 * A job that has used up its attempts.
 *
 * @since 0.1.0
 */
export interface DeadLetter<A> {
  readonly id: string
  /** `None` when it does not decode; `encoded` has it as it was stored. */
  readonly payload: Option.Option<A>
  /** JSON text. */
  readonly encoded: string
  readonly attempts: number
  readonly reason: DeathReason
  readonly firstError: string
  readonly lastError: string
  readonly publishedAt: DateTime.Utc
  readonly diedAt: DateTime.Utc
}

/**
 * A page of {@link deadLetters}: `offset` defaults to 0, `limit` to 100.
 *
 * @since 0.1.0
 */
export interface Page {
  readonly offset?: number | undefined
  readonly limit?: number | undefined
}

/**
 * Queues by job. See the module for the guarantees; the module functions of the
 * same names call this service.
 *
 * @since 0.1.0
 */
export class EventQueue extends Context.Service<
  EventQueue,
  {
    readonly publish: <A, RD, RE>(
      job: Job<A, RD, RE>,
      payload: A,
      options?: PublishOptions
    ) => Effect.Effect<Published, EventQueueError, RE>
    readonly subscribe: <A, RD, RE, R, R2 = never>(
      job: Job<A, RD, RE>,
      options: SubscribeOptions<A, R, R2>
    ) => Effect.Effect<void, EventQueueError, RD | R | R2 | Scope.Scope>
    readonly depth: (job: Job<any, any, any>) => Effect.Effect<Depth, EventQueueError>
    readonly deadLetters: <A, RD, RE>(
      job: Job<A, RD, RE>,
      page?: Page
    ) => Effect.Effect<Array<DeadLetter<A>>, EventQueueError, RD>
    readonly deadLetter: <A, RD, RE>(
      job: Job<A, RD, RE>,
      id: string
    ) => Effect.Effect<Option.Option<DeadLetter<A>>, EventQueueError, RD>
    readonly redrive: (
      job: Job<any, any, any>,
      ids: ReadonlyArray<string> | "all"
    ) => Effect.Effect<number, EventQueueError>
    readonly discard: (
      job: Job<any, any, any>,
      ids: ReadonlyArray<string> | "all"
    ) => Effect.Effect<number, EventQueueError>
  }
>()("cohort/services/EventQueue") {}

/**
 * Hands a job to the queue. Fails, with nothing stored, when the Schema refuses the payload.
 *
 * @since 0.1.0
 */
export const publish = <A, RD, RE>(
  job: Job<A, RD, RE>,
  payload: A,
  options?: PublishOptions
): Effect.Effect<Published, EventQueueError, EventQueue | RE> =>
  EventQueue.use((queue) => queue.publish(job, payload, options))

/**
 * Runs jobs until the scope closes, and drains then.
 *
 * @since 0.1.0
 */
export const subscribe = <A, RD, RE, R, R2 = never>(
  job: Job<A, RD, RE>,
  options: SubscribeOptions<A, R, R2>
): Effect.Effect<void, EventQueueError, EventQueue | RD | R | R2 | Scope.Scope> =>
  EventQueue.use((queue) => queue.subscribe(job, options))

/**
 * How many jobs are ready, delayed, in flight and dead.
 *
 * @since 0.1.0
 */
export const depth = (job: Job<any, any, any>): Effect.Effect<Depth, EventQueueError, EventQueue> =>
  EventQueue.use((queue) => queue.depth(job))

/**
 * The dead letters of a job, oldest first.
 *
 * @since 0.1.0
 */
export const deadLetters = <A, RD, RE>(
  job: Job<A, RD, RE>,
  page?: Page
): Effect.Effect<Array<DeadLetter<A>>, EventQueueError, EventQueue | RD> =>
  EventQueue.use((queue) => queue.deadLetters(job, page))

/**
 * One dead letter.
 *
 * @since 0.1.0
 */
export const deadLetter = <A, RD, RE>(
  job: Job<A, RD, RE>,
  id: string
): Effect.Effect<Option.Option<DeadLetter<A>>, EventQueueError, EventQueue | RD> =>
  EventQueue.use((queue) => queue.deadLetter(job, id))

/**
 * Makes dead letters jobs again, with all their attempts before them; returns how
 * many. Ids that are not dead, or live again by now, are passed over.
 *
 * @since 0.1.0
 */
export const redrive = (
  job: Job<any, any, any>,
  ids: ReadonlyArray<string> | "all"
): Effect.Effect<number, EventQueueError, EventQueue> => EventQueue.use((queue) => queue.redrive(job, ids))

/**
 * Forgets dead letters; returns how many.
 *
 * @since 0.1.0
 */
export const discard = (
  job: Job<any, any, any>,
  ids: ReadonlyArray<string> | "all"
): Effect.Effect<number, EventQueueError, EventQueue> => EventQueue.use((queue) => queue.discard(job, ids))

/** How long to wait after the backend did not answer. */
const outageBackoff = Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("5 seconds")]).pipe(
  Schedule.jittered
)

/**
 * Makes the service on the {@link EventQueueStore} in context.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<EventQueue["Service"], never, EventQueueStore | Instance | Scope.Scope> = Effect.gen(
  function* () {
    const store = yield* EventQueueStore
    const { app } = yield* Instance
    const timers = yield* Timers.make

    const address = (job: { readonly channel: string }) => Validate.address(app, "queue", job.channel)

    const operation = <A>(
      name: string,
      job: { readonly channel: string },
      effect: Effect.Effect<A, Unavailable>
    ): Effect.Effect<A, EventQueueError> =>
      settled(effect) ??
      Effect.mapError(
        traced(store.system, `EventQueue.${name}`, { "messaging.destination.name": job.channel }, effect),
        wrapError
      )

    const valid = <A, E, R>(
      job: { readonly invalid: InvalidInput | undefined },
      effect: () => Effect.Effect<A, E, R>
    ): Effect.Effect<A, E | EventQueueError, R> =>
      Effect.suspend(
        (): Effect.Effect<A, E | EventQueueError, R> => (job.invalid === undefined ? effect() : fail(job.invalid))
      )

    const toDeadLetter = <A, RD, RE>(job: Job<A, RD, RE>, dead: DeadJob): Effect.Effect<DeadLetter<A>, never, RD> =>
      Effect.map(decodable(job.wire.decode(dead.payload)), (payload) => ({
        id: dead.id,
        payload,
        encoded: dead.payload.json,
        attempts: dead.attempts,
        reason: dead.reason,
        firstError: dead.firstError,
        lastError: dead.lastError,
        publishedAt: DateTime.makeUnsafe(dead.publishedAt),
        diedAt: DateTime.makeUnsafe(dead.diedAt)
      }))

    return EventQueue.of({
      publish: (job, payload, options) =>
        valid(job, () => {
          const timeout = options?.timeout === undefined ? job.timeout : Validate.millis("timeout", options.timeout)
          const delay = options?.delay === undefined ? 0 : Validate.millis("delay", options.delay, { zero: true })
          const maxRetries =
            options?.maxRetries === undefined ? job.maxRetries : Validate.integer("maxRetries", options.maxRetries, 0)
          const invalid =
            (options?.id === undefined ? undefined : Validate.key(options.id, "id")) ??
            invalidOf(timeout) ??
            invalidOf(delay) ??
            invalidOf(maxRetries)
          if (invalid !== undefined) return fail(invalid)
          const id = options?.id ?? SecureRandom.uuidV4Unsafe()
          return Effect.flatMap(Effect.mapError(job.wire.encode("payload", payload), wrapError), (payload) =>
            Effect.map(
              operation(
                "publish",
                job,
                store.publish(address(job), {
                  id,
                  payload,
                  delay: delay as number,
                  timeout: timeout as number,
                  maxRetries: maxRetries as number,
                  keepId: job.keepId
                })
              ),
              (stored): Published => ({ id, duplicate: !stored })
            )
          )
        }),

      subscribe: (job, options) => valid(job, () => runSubscription(store, timers, address(job), job, options)),

      depth: (job) => valid(job, () => operation("depth", job, store.depth(address(job)))),

      deadLetters: (job, page) =>
        valid(job, () => {
          const offset = Validate.integer("offset", page?.offset ?? 0, 0)
          const limit = Validate.integer("limit", page?.limit ?? 100, 1)
          const invalid = invalidOf(offset) ?? invalidOf(limit)
          if (invalid !== undefined) return fail(invalid)
          return Effect.flatMap(
            operation(
              "deadLetters",
              job,
              store.deadLetters(address(job), { offset: offset as number, limit: limit as number })
            ),
            (dead) => Effect.forEach(dead, (dead) => toDeadLetter(job, dead))
          )
        }),

      deadLetter: (job, id) =>
        valid(job, () =>
          Effect.flatMap(operation("deadLetter", job, store.deadLetter(address(job), id)), (dead) =>
            dead === undefined ? Effect.succeedNone : Effect.asSome(toDeadLetter(job, dead))
          )
        ),

      redrive: (job, ids) => valid(job, () => operation("redrive", job, store.redrive(address(job), ids))),
      discard: (job, ids) => valid(job, () => operation("discard", job, store.discard(address(job), ids)))
    })
  }
)

/**
 * A job being run. `verdict` is why we stopped its handler, if we did; `over` is
 * set once its attempt is settled, which a handler that ignores interruption can outlive.
 */
interface Running {
  readonly delivery: Delivery
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  timeout: Timers.Timer | undefined
  verdict: "timeout" | "shutdown" | "stale" | undefined
  over: boolean
}

const runSubscription = <A, RD, RE, R, R2>(
  store: EventQueueStore["Service"],
  timers: Timers.Timers,
  address: string,
  job: Job<A, RD, RE>,
  options: SubscribeOptions<A, R, R2>
): Effect.Effect<void, EventQueueError, RD | R | R2 | Scope.Scope> =>
  Effect.gen(function* () {
    const lease = Validate.millis("lease", options.lease ?? "30 seconds")
    const shutdownTimeout = Validate.millis("shutdownTimeout", options.shutdownTimeout ?? "30 seconds", { zero: true })
    const idleInterval = Validate.millis("idleInterval", options.idleInterval ?? "500 millis")
    const concurrency =
      options.concurrency === "unbounded"
        ? Number.POSITIVE_INFINITY
        : Validate.integer("concurrency", options.concurrency ?? 1, 1)
    const invalid = invalidOf(lease) ?? invalidOf(shutdownTimeout) ?? invalidOf(idleInterval) ?? invalidOf(concurrency)
    if (invalid !== undefined) return yield* fail(invalid)

    const context = yield* Effect.context<RD | R | R2>()
    const runFork = Effect.runForkWith(context)
    const instance = { channel: job.channel }
    const logWarning = (text: string, ...details: ReadonlyArray<unknown>) =>
      Effect.annotateLogs(Effect.logWarning(text, ...details), instance)

    // The worker outlives the pump: it settles what was running when the scope closes.
    const workerScope = yield* Scope.make()
    yield* Effect.addFinalizer((exit) => Scope.close(workerScope, exit))
    const worker: Worker = yield* Effect.mapError(
      Scope.provide(store.worker(address, { lease: lease as number, concurrency: concurrency as number }), workerScope),
      wrapError
    )

    const running = new Set<Running>()
    /** Open while there is room for another job. */
    const room = Latch.makeUnsafe(true)
    let finished: Array<Settlement> = []
    let taking = false
    /** Set when draining begins: nothing is started from then on. */
    let closing = false
    /** Set when draining has ended: nothing is settled from then on. */
    let closed = false
    let settling: Fiber.Fiber<void> | undefined

    // --- settling ---

    /** Sends what has finished, in batches, until nothing is left; waits out an outage. */
    const settleAll = Effect.suspend(() => {
      if (finished.length === 0) return Effect.void
      const batch = finished
      finished = []
      const stale = (accepted: ReadonlyArray<boolean>) => {
        const refused = accepted.reduce((n, ok) => (ok ? n : n + 1), 0)
        return refused === 0 ? Effect.void : Metric.update(Metrics.jobsStale, refused)
      }
      const sent = worker.settle(batch)
      const known = settled(sent)
      if (known !== undefined) return stale(known.value)
      let first = true
      return Effect.suspend(() => {
        if (first) {
          first = false
          return sent
        }
        return worker.settle(batch)
      }).pipe(Effect.retry(outageBackoff), Effect.orDie, Effect.flatMap(stale)) // the backoff never ends
    })

    const settleLoop: Effect.Effect<void> = Effect.flatMap(settleAll, () =>
      finished.length === 0 ? Effect.void : settleLoop
    )

    /** Settles soon: what finishes in one turn goes out in one batch. */
    const flush = () => {
      if (settling !== undefined || finished.length === 0 || closed) return
      const fiber = runFork(settleLoop)
      if (fiber.pollUnsafe() !== undefined) return
      settling = fiber
      fiber.addObserver(() => {
        settling = undefined
        flush()
      })
    }

    const settle = (entry: Running, outcome: Outcome) => {
      if (entry.over) return
      entry.over = true
      if (entry.timeout !== undefined) timers.cancel(entry.timeout)
      finished.push({ delivery: entry.delivery, outcome })
      countOutcome(outcome)
      if (!taking) flush()
    }

    const countOutcome = (outcome: Outcome) => {
      Metrics.jobsSettledBy[outcome._tag].updateUnsafe(1, context as Context.Context<never>)
    }

    /** What a take under way brought when draining began. */
    const giveBack = (delivery: Delivery) => {
      finished.push({ delivery, outcome: { _tag: "release" } })
    }

    // --- one job ---

    const free = (entry: Running) => {
      running.delete(entry)
      room.openUnsafe()
    }

    const failed = (entry: Running, reason: DeathReason, error: string) => {
      const { attempt, id, maxRetries } = entry.delivery
      if (attempt > maxRetries || reason === "Undecodable") {
        runFork(logWarning("Job became a dead letter", error).pipe(Effect.annotateLogs({ job: id, attempt, reason })))
        settle(entry, { _tag: "bury", reason, error })
        return
      }
      const delay = Effect.catchCause(retryDelay(job.backoff, attempt), (cause) =>
        Effect.andThen(
          logWarning("Backoff failed; the default is used", Cause.pretty(cause)),
          retryDelay(defaultBackoff, attempt)
        )
      )
      const retry = Effect.map(delay, (delay) => settle(entry, { _tag: "retry", delay, error }))
      runFork(
        Effect.andThen(
          Effect.annotateLogs(Effect.logDebug("Job attempt failed; it is retried", error), {
            ...instance,
            job: id,
            attempt
          }),
          retry
        )
      )
    }

    /** Stops a handler; one that does not stop loses its job, but keeps its place. */
    const stop = (entry: Running, verdict: Exclude<Running["verdict"], undefined>) => {
      if (entry.verdict !== undefined || entry.fiber === undefined) return
      entry.verdict = verdict
      timers.at(timers.now() + Duration.toMillis(stopGrace), () => {
        if (entry.over) return
        runFork(
          logWarning("Job handler does not stop when interrupted; left behind").pipe(
            Effect.annotateLogs({ job: entry.delivery.id, attempt: entry.delivery.attempt })
          )
        )
        ended(entry, undefined)
      })
      entry.fiber.interruptUnsafe()
    }

    /** The end of an attempt; without an exit when its handler was left behind. */
    const ended = (entry: Running, exit: Exit.Exit<unknown, unknown> | undefined) => {
      if (exit?._tag === "Success") return settle(entry, { _tag: "ack" })
      switch (entry.verdict) {
        case "shutdown":
          return settle(entry, { _tag: "release" })
        case "stale":
          entry.over = true
          return
        case "timeout":
          return failed(entry, "TimedOut", `timed out after ${entry.delivery.timeout} ms`)
        default:
          return failed(entry, "Failed", exit === undefined ? "interrupted" : describe(exit.cause))
      }
    }

    const start = (delivery: Delivery) => {
      const entry: Running = { delivery, fiber: undefined, timeout: undefined, verdict: undefined, over: false }
      running.add(entry)
      if (delivery.attempt > delivery.maxRetries + 1) {
        settle(entry, {
          _tag: "bury",
          reason: "WorkerLost",
          error: delivery.lastError ?? "the worker was lost during the attempt"
        })
        return free(entry)
      }
      const decoded = job.wire.decode(delivery.payload)
      const known = settled(decoded)
      const info: JobInfo = { id: delivery.id, attempt: delivery.attempt, maxAttempts: delivery.maxRetries + 1 }
      if (known !== undefined)
        return run(
          entry,
          Effect.suspend(() => options.process(known.value, info))
        )
      let readable = false
      run(
        entry,
        Effect.flatMap(decoded, (payload) => {
          readable = true
          return options.process(payload, info)
        }),
        () => readable
      )
    }

    const annotations = { ...Context.get(context, References.CurrentLogAnnotations), ...instance }
    /** The context of an attempt; cheaper than `annotateLogs`, which changes that of a fiber and back. */
    const logging = ({ attempt, id }: Delivery): Context.Context<RD | R> =>
      Context.add(context, References.CurrentLogAnnotations, { ...annotations, job: id, attempt })

    const run = (entry: Running, handler: Effect.Effect<unknown, unknown, RD | R>, readable?: () => boolean) => {
      const { delivery } = entry
      const fiber = Effect.runForkWith(logging(delivery))(handler)
      const done = (exit: Exit.Exit<unknown, unknown>) => {
        if (exit._tag === "Failure" && readable !== undefined && !readable() && entry.verdict === undefined) {
          failed(entry, "Undecodable", describe(exit.cause))
        } else if (!entry.over) {
          ended(entry, exit)
        }
        free(entry)
      }
      const exit = fiber.pollUnsafe()
      if (exit !== undefined) return done(exit)
      entry.fiber = fiber
      fiber.addObserver(done)
      entry.timeout = timers.at(timers.now() + delivery.timeout, () => stop(entry, "timeout"))
    }

    // --- leases ---

    const held = () => [...running].filter((entry) => !entry.over)

    yield* Effect.suspend(() => {
      const entries = held()
      if (entries.length === 0) return Effect.void
      return Effect.map(worker.renew(entries.map((entry) => entry.delivery)), (renewed) => {
        entries.forEach((entry, i) => {
          if (renewed[i] === false && !entry.over) stop(entry, "stale")
        })
      })
    }).pipe(
      Effect.catch((error) => logWarning("Job leases not renewed", error)),
      Effect.delay((lease as number) / 3),
      Effect.forever,
      Effect.forkIn(workerScope)
    )

    // --- taking ---

    // Taking and starting is one step: nothing taken is lost when the pump is interrupted.
    const takeAndStart = Effect.uninterruptible(
      Effect.suspend(() => {
        const taken = worker.take(Math.min((concurrency as number) - running.size, 1_000))
        const startAll = (deliveries: ReadonlyArray<Delivery>) => {
          taking = true
          if (closing) for (const delivery of deliveries) giveBack(delivery)
          else for (const delivery of deliveries) start(delivery)
          taking = false
          flush()
          if (running.size >= (concurrency as number)) room.closeUnsafe()
          return Effect.void
        }
        const known = settled(taken)
        return known === undefined ? Effect.flatMap(taken, startAll) : startAll(known.value)
      })
    )

    const isIdle =
      options.idle === undefined
        ? undefined
        : Effect.catchCause(options.idle, (cause) =>
            Effect.as(logWarning("Idle gate failed; taken as false", Cause.pretty(cause)), false)
          )

    const step: Effect.Effect<void, Unavailable, R2> =
      isIdle === undefined
        ? Effect.flatMap(room.await, () => Effect.flatMap(worker.ready, () => takeAndStart))
        : Effect.gen(function* () {
            yield* room.await
            yield* worker.ready
            if (yield* isIdle) return yield* takeAndStart
            yield* worker.pause
            yield* Effect.sleep(idleInterval as number)
          })

    // --- draining ---

    const allFree = Effect.gen(function* () {
      while (running.size > 0) {
        room.closeUnsafe()
        yield* room.await
      }
    })
    const allSettled = Effect.suspend(() => {
      flush()
      return settling === undefined ? Effect.void : Effect.asVoid(Fiber.await(settling))
    })

    // Set up before anything is taken, so that whatever is started is also stopped.
    let pump: Fiber.Fiber<never, Unavailable> | undefined
    yield* Effect.addFinalizer(() =>
      Effect.gen(function* () {
        closing = true
        if (pump !== undefined) yield* awaitStop(pump, "The idle gate of a queue")
        yield* Effect.timeoutOption(allFree, shutdownTimeout as number)
        for (const entry of running) stop(entry, "shutdown")
        // Handlers that ignore interruption are left behind by `stop` after its grace.
        yield* Effect.timeoutOption(allFree, Duration.sum(stopGrace, Duration.millis(1)))
        yield* Effect.timeoutOption(Effect.repeat(allSettled, { while: () => finished.length > 0 }), stopGrace)
        // What an outage did not let through comes back with its lease.
        closed = true
        if (settling !== undefined) yield* Fiber.interrupt(settling)
        yield* Effect.ignore(worker.pause)
      })
    )

    pump = yield* step.pipe(
      Effect.catch((error) =>
        Effect.andThen(logWarning("Queue unavailable; trying again", error), Effect.retry(step, outageBackoff))
      ),
      Effect.forever,
      Effect.provideContext(context),
      Effect.forkDetach
    )
  })

/** The delay of a retry, in milliseconds: the schedule replayed up to it. */
const retryDelay = (backoff: Schedule.Schedule<unknown, unknown>, retry: number): Effect.Effect<number> =>
  Effect.gen(function* () {
    const step = yield* Schedule.toStep(backoff)
    let delay = 0
    let now = 0
    for (let i = 1; i <= retry; i++) {
      const next = yield* Pull.catchDone(step(now, i), () => Effect.undefined)
      if (next === undefined) break
      delay = Duration.toMillis(next[1])
      now += delay
    }
    return delay
  })

/** What is kept of an error: readable, and not larger than it is worth. */
const describe = (cause: Cause.Cause<unknown>): string => Cause.pretty(cause).slice(0, 4_000)

/** `None` when it does not decode, also when the Schema throws. */
const decodable = <A, E, R>(decoded: Effect.Effect<A, E, R>): Effect.Effect<Option.Option<A>, never, R> =>
  Effect.catchCause(Effect.asSome(decoded), () => Effect.succeedNone)

const fail = (reason: InvalidInput | Unavailable) => Effect.fail(new EventQueueError({ reason }))
const wrapError = (reason: InvalidInput | Unavailable) => new EventQueueError({ reason })
const invalidOf = (value: unknown): InvalidInput | undefined => (value instanceof InvalidInput ? value : undefined)

/**
 * Provides {@link EventQueue} on the {@link EventQueueStore} in context.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<EventQueue, never, EventQueueStore | Instance> = Layer.effect(EventQueue, make)
