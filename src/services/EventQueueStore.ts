/**
 * The port that a queue backend implements.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { Payload } from "./Payload.ts"
import type { InvalidInput, Unavailable } from "./Reason.ts"

/**
 * Why a job became a dead letter.
 *
 * - `Failed`: its handler failed or died on the last attempt.
 * - `TimedOut`: its last attempt took longer than its timeout.
 * - `WorkerLost`: its last worker died, or lost its lease, without a word.
 * - `Undecodable`: its payload does not decode.
 *
 * @since 0.1.0
 */
export const DeathReason = Schema.Literals(["Failed", "TimedOut", "WorkerLost", "Undecodable"])

/**
 * @since 0.1.0
 */
export type DeathReason = typeof DeathReason.Type

/**
 * A job to store. Times are in milliseconds.
 *
 * @since 0.1.0
 */
export interface NewJob {
  readonly id: string
  /** Whether the id was given by whoever publishes. One that was not is random, and never known. */
  readonly isGiven: boolean
  readonly payload: Payload
  /** Until the first run. */
  readonly delay: number
  /** Of one attempt. */
  readonly timeout: number
  readonly maxRetries: number
  /** How long after its end (success or death) the id still deduplicates. */
  readonly keepId: number
}

/**
 * A job taken by a worker, for one attempt. `token` is what the backend knows
 * this attempt by: settling is refused once it has given the job to someone else.
 *
 * @since 0.1.0
 */
export interface Delivery {
  readonly id: string
  readonly payload: Payload
  /** 1-based. Counted when taken, so that a job that kills its process gets through its attempts. */
  readonly attempt: number
  readonly timeout: number
  readonly maxRetries: number
  /** Of the previous attempt, if it left word. */
  readonly lastError: string | undefined
  readonly token: unknown
}

/**
 * How an attempt ended.
 *
 * - `ack`: done; forget the job.
 * - `retry`: run again after `delay` milliseconds, which pass in the broker.
 * - `release`: give back as it was, for after `delay` milliseconds (zero: first in line); the attempt does not count.
 * - `bury`: make it a dead letter.
 *
 * @since 0.1.0
 */
export type Outcome =
  | { readonly _tag: "ack" }
  | { readonly _tag: "retry"; readonly delay: number; readonly error: string }
  | { readonly _tag: "release"; readonly delay: number }
  | { readonly _tag: "bury"; readonly reason: DeathReason; readonly error: string }

/**
 * @since 0.1.0
 */
export interface Settlement {
  readonly delivery: Delivery
  readonly outcome: Outcome
}

/**
 * A dead letter as stored. Times are Unix milliseconds.
 *
 * @since 0.1.0
 */
export interface DeadJob {
  readonly id: string
  readonly payload: Payload
  readonly attempts: number
  readonly reason: DeathReason
  readonly firstError: string
  readonly lastError: string
  readonly publishedAt: number
  readonly diedAt: number
}

/**
 * How much a channel holds.
 *
 * @since 0.1.0
 */
export interface Depth {
  /** Waiting to be taken now. */
  readonly ready: number
  /** Waiting for their delay or backoff to pass. */
  readonly delayed: number
  /** With a worker, running or about to. */
  readonly inFlight: number
  readonly dead: number
}

/**
 * One subscription's hold on the backend.
 *
 * @since 0.1.0
 */
export interface Worker {
  /** Returns when a `take` may find something; spurious returns are fine, missed ones are not. */
  readonly ready: Effect.Effect<void, Unavailable>
  /** At most `max` jobs, without waiting; none when others were quicker. */
  readonly take: (max: number) => Effect.Effect<ReadonlyArray<Delivery>, Unavailable>
  /** Gives back whatever the worker holds that was not taken, so that others get it. */
  readonly pause: Effect.Effect<void, Unavailable>
  /** Starts the leases again; tells, in order, which deliveries are still the worker's. */
  readonly renew: (deliveries: ReadonlyArray<Delivery>) => Effect.Effect<ReadonlyArray<boolean>, Unavailable>
  /** Ends attempts; tells, in order, which were accepted. A stale one is refused and changes nothing. */
  readonly settle: (settlements: ReadonlyArray<Settlement>) => Effect.Effect<ReadonlyArray<boolean>, Unavailable>
}

/**
 * What a backend promises:
 *
 * - A published job is taken at least once, unless it is discarded. `publish`
 *   succeeds only when the broker has the job; it survives the death of any worker
 *   and the restart of the broker (memory: as long as its hub).
 * - A job whose worker dies, or does not renew its lease, is offered again, within
 *   one lease.
 * - Only the worker that a job was last given to can settle it.
 * - Delays and retries wait in the broker.
 * - Dead letters are kept until they are redriven or discarded. Dying replaces an
 *   older dead letter of the same id.
 * - Every effect but `ready` fails with `Unavailable` within a bound when the
 *   backend is away.
 *
 * Channels arrive prefixed with the app.
 *
 * As with every port, the service calls a function inside a running effect and
 * runs what it returns at once and once: a store in memory may act in the call
 * and answer with an `Exit`.
 *
 * @since 0.1.0
 */
export class EventQueueStore extends Context.Service<
  EventQueueStore,
  {
    /** `"memory"`, `"redis"`, `"rabbitmq"`: names the backend in spans and errors. */
    readonly system: string
    /**
     * `false` when the id is known: the job lives, or ended less than its `keepId` ago. `InvalidInput` when the backend never
     * takes a payload as large.
     */
    readonly publish: (channel: string, job: NewJob) => Effect.Effect<boolean, Unavailable | InvalidInput>
    /** `lease` is in milliseconds; `concurrency` is how many jobs it starts at a time. */
    readonly worker: (
      channel: string,
      options: { readonly lease: number; readonly concurrency: number }
    ) => Effect.Effect<Worker, Unavailable, Scope.Scope>
    readonly depth: (channel: string) => Effect.Effect<Depth, Unavailable>
    /** Oldest first. */
    readonly deadLetters: (
      channel: string,
      range: { readonly offset: number; readonly limit: number }
    ) => Effect.Effect<ReadonlyArray<DeadJob>, Unavailable>
    readonly deadLetter: (channel: string, id: string) => Effect.Effect<DeadJob | undefined, Unavailable>
    /** Makes dead letters jobs again, with all their attempts before them. Returns how many. */
    readonly redrive: (channel: string, ids: ReadonlyArray<string> | "all") => Effect.Effect<number, Unavailable>
    /** Forgets dead letters. Returns how many. */
    readonly discard: (channel: string, ids: ReadonlyArray<string> | "all") => Effect.Effect<number, Unavailable>
  }
>()("cohort/services/EventQueueStore") {}
