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
 * - **Giving back.** A handler that fails with `Job.snooze` gives its job back for a while; the attempt
 *   does not count.
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
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { Defaults } from "./Defaults.ts"
import { type DeadJob, type DeathReason, type Depth, EventQueueStore, type NewJob } from "./EventQueueStore.ts"
import { Instance } from "./Instance.ts"
import * as AfterCommit from "./internal/afterCommit.ts"
import * as Counts from "./internal/counts.ts"
import { getOrMake } from "./internal/getOrMake.ts"
import * as OutboxJobs from "./internal/outbox/jobs.ts"
import * as QueueWorker from "./internal/QueueWorker.ts"
import { settled } from "./internal/settled.ts"
import * as Timers from "./internal/Timers.ts"
import { sending, traced } from "./internal/telemetry.ts"
import * as Validate from "./internal/validate.ts"
import type { Job } from "./Job.ts"
import * as Metrics from "./Metrics.ts"
import { InvalidInput, Unavailable } from "./Reason.ts"
import * as Uuid from "./Uuid.ts"

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
  /**
   * In an open `effect/sql` transaction, hand the job over after the outermost commit, and never after a rollback;
   * what cannot be handed over then is logged and counted. Without a transaction at once. Default `false`.
   */
  readonly afterCommit?: boolean | undefined
}

/**
 * What {@link publish} answers: the job's id, and whether it was there already; `false` when it waits for a commit.
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
 * What this instance has to do with a channel.
 *
 * @since 0.2.0
 */
export interface ChannelUse {
  readonly channel: string
  /** Whether it subscribes; otherwise it has published. */
  readonly subscribed: boolean
  /** Whether a subscription takes jobs: `false` while every one's `idle` answers `false`. */
  readonly serving: boolean
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
    /** The channels that this instance has published to or subscribes to. */
    readonly channels: Effect.Effect<ReadonlyArray<ChannelUse>>
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

/**
 * Makes the service on the {@link EventQueueStore} in context.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<EventQueue["Service"], never, EventQueueStore | Instance | Scope.Scope> = Effect.gen(
  function* () {
    const store = yield* EventQueueStore
    const { app, id: instance } = yield* Instance
    const timers = yield* Timers.make
    const defaults = yield* Defaults
    const afterCommit = yield* AfterCommit.make(wrapError)
    const countSent = yield* Counts.make(Metrics.sent)
    const countConsumed = yield* Counts.make(Metrics.consumed)
    const durations = yield* Counts.makeDurations(Metrics.processDuration, Metrics.processBoundaries)
    /** Every channel that was used: the gates of its subscriptions, and how many jobs were handed to it. */
    const uses = new Map<string, { readonly gates: Set<QueueWorker.Gate>; readonly sent: Counts.Count }>()
    const useOf = (channel: string) =>
      getOrMake(uses, channel, () => ({
        gates: new Set<QueueWorker.Gate>(),
        sent: countSent({ "messaging.system": store.system, "messaging.destination.name": channel })
      }))
    const uuid = yield* Uuid.Generator

    const queues = Validate.address(app, "queue")
    const address = ({ channel }: { readonly channel: string }) => `${queues}:${Validate.escape(channel)}`

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

    /** Answers whether the job is new. */
    const hand = (channel: string, job: NewJob): Effect.Effect<boolean, EventQueueError> =>
      Effect.mapBoth(
        sending(
          store.system,
          "EventQueue.publish",
          {
            "messaging.operation.name": "publish",
            "messaging.destination.name": channel,
            "messaging.message.id": job.id
          },
          (trace) => store.publish(address({ channel }), trace === undefined ? job : inTrace(job, trace))
        ),
        {
          onFailure: wrapError,
          onSuccess: (isNew) => {
            useOf(channel).sent.value++
            return isNew
          }
        }
      )

    const outbox = yield* OutboxJobs.open({
      app,
      instance,
      publish: hand,
      depth: (channel) => operation("depth", { channel }, store.depth(address({ channel })))
    })

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
        encoded: dead.payload.dataJson,
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
            Validate.invalidOf(timeout) ??
            Validate.invalidOf(delay) ??
            Validate.invalidOf(maxRetries)
          if (invalid !== undefined) return fail(invalid)
          useOf(job.channel)
          const id = options?.id ?? uuid()
          return Effect.flatMap(Effect.mapError(job.wire.encode("payload", payload), wrapError), (payload) => {
            const stored: NewJob = {
              id,
              isGiven: options?.id !== undefined,
              payload,
              delay: delay as number,
              timeout: timeout as number,
              maxRetries: maxRetries as number,
              keepId: job.keepId
            }
            const send = () => Effect.map(hand(job.channel, stored), (isNew): Published => ({ id, duplicate: !isNew }))
            if (options?.afterCommit !== true) return send()
            const later = { id, duplicate: false }
            if (outbox === undefined) {
              return afterCommit.send(Effect.suspend(send), later, { channel: job.channel, job: id })
            }
            return Effect.mapError(Effect.as(outbox.write(job.channel, stored), later), wrapError)
          })
        }),

      subscribe: (job, options) =>
        valid(job, () => {
          const attributes = { "messaging.system": store.system, "messaging.destination.name": job.channel }
          const seen: QueueWorker.Seen = {
            instance,
            attributes,
            gates: useOf(job.channel).gates,
            durations: durations(attributes),
            ended: (outcome) => countConsumed({ ...attributes, "cohort.outcome": outcome })
          }
          return Effect.mapError(QueueWorker.run(store, timers, address(job), job, options, defaults, seen), wrapError)
        }),

      depth: (job) => valid(job, () => operation("depth", job, store.depth(address(job)))),

      deadLetters: (job, page) =>
        valid(job, () => {
          const offset = Validate.integer("offset", page?.offset ?? 0, 0)
          const limit = Validate.integer("limit", page?.limit ?? 100, 1)
          const invalid = Validate.invalidOf(offset) ?? Validate.invalidOf(limit)
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
      discard: (job, ids) => valid(job, () => operation("discard", job, store.discard(address(job), ids))),
      channels: Effect.sync(() =>
        Array.from(uses, ([channel, { gates }]) => ({
          channel,
          subscribed: gates.size > 0,
          serving: [...gates].some((gate) => gate.open)
        }))
      )
    })
  }
)

/** `None` when it does not decode, also when the Schema throws. */
const decodable = <A, E, R>(decoded: Effect.Effect<A, E, R>): Effect.Effect<Option.Option<A>, never, R> =>
  Effect.catchCause(Effect.asSome(decoded), () => Effect.succeedNone)

/** Part of the trace that it was published in, also when the outbox sends it. */
const inTrace = (job: NewJob, trace: string): NewJob => ({
  ...job,
  payload: job.payload.trace === undefined ? job.payload.withTrace(trace) : job.payload
})

const fail = (reason: InvalidInput | Unavailable) => Effect.fail(new EventQueueError({ reason }))
const wrapError = (reason: InvalidInput | Unavailable) => new EventQueueError({ reason })
/**
 * Provides {@link EventQueue} on the {@link EventQueueStore} in context.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<EventQueue, never, EventQueueStore | Instance> = Layer.effect(EventQueue, make)
