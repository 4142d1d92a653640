/**
 * A queue channel, what its jobs carry, and how they are tried.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Validate from "./internal/validate.ts"
import { type Wire, wire } from "./Payload.ts"
import type { InvalidInput } from "./Reason.ts"

/**
 * Options of {@link make}.
 *
 * @since 0.1.0
 */
export interface Options {
  /** How long one attempt may take; positive and finite. Default 15 seconds. */
  readonly timeout?: Duration.Input | undefined
  /** How often a failed job is tried again: `n` allows `n + 1` attempts. Default 0. */
  readonly maxRetries?: number | undefined
  /**
   * How long each retry waits, by its number. Default {@link defaultBackoff}.
   * The schedule is replayed for every retry, so it must depend on nothing but
   * how often it was stepped; when it ends, its last delay is kept.
   */
  readonly backoff?: Schedule.Schedule<unknown, unknown> | undefined
  /** How long a job's id still deduplicates after its success or death. Default: not at all. */
  readonly keepId?: Duration.Input | undefined
}

/**
 * A typed channel for {@link EventQueue}. `RD` and `RE` are what its Schema
 * requires to decode and encode; most require nothing. Times are in milliseconds.
 *
 * @since 0.1.0
 */
export interface Job<A, RD = never, RE = never> {
  readonly channel: string
  readonly wire: Wire<A, RD, RE>
  readonly timeout: number
  readonly maxRetries: number
  readonly backoff: Schedule.Schedule<unknown, unknown>
  readonly keepId: number
  /** Why the declaration cannot be used, if it cannot; reported by the first use. */
  readonly invalid: InvalidInput | undefined
}

/**
 * What a handler fails with to give its job back; see {@link snooze}.
 *
 * @since 0.1.0
 */
export class Snoozed extends Schema.TaggedError<Snoozed>("cohort/Snoozed")("Snoozed", {
  /** Milliseconds. */
  delay: Schema.Number
}) {
  override get message(): string {
    return `given back for ${this.delay} ms`
  }
}

/**
 * Gives a job back from inside its handler: it runs again after `delay` (positive
 * and finite), here or on another instance, and the attempt does not count. For a
 * job that cannot be run here or now, which is no failure of the job.
 *
 * @since 0.1.0
 */
export const snooze = (delay: Duration.Input): Effect.Effect<never, Snoozed | InvalidInput> =>
  Effect.suspend(() => {
    const millis = Validate.millis("delay", delay)
    return Effect.fail(typeof millis === "number" ? new Snoozed({ delay: millis }) : millis)
  })

/**
 * Exponential from 500 ms, factor 2, capped at 30 seconds, then jittered by up to a fifth.
 *
 * @since 0.1.0
 */
export const defaultBackoff: Schedule.Schedule<unknown, unknown> = Schedule.min([
  Schedule.exponential("500 millis"),
  Schedule.spaced("30 seconds")
]).pipe(Schedule.jittered)

/**
 * Declares a job. Every instance of the app must declare it alike.
 *
 * @since 0.1.0
 */
export const make = <S extends Schema.Constraint>(
  channel: string,
  schema: S,
  options: Options = {}
): Job<S["Type"], S["DecodingServices"], S["EncodingServices"]> => {
  const timeout = Validate.millis("timeout", options.timeout ?? "15 seconds")
  const maxRetries = Validate.integer("maxRetries", options.maxRetries ?? 0, 0)
  const keepId = Validate.millis("keepId", options.keepId ?? 0, { zero: true })
  const invalid =
    Validate.name("channel", channel) ??
    Validate.invalidOf(timeout) ??
    Validate.invalidOf(maxRetries) ??
    Validate.invalidOf(keepId)
  return {
    channel,
    wire: wire(schema),
    timeout: timeout as number,
    maxRetries: maxRetries as number,
    backoff: options.backoff ?? defaultBackoff,
    keepId: keepId as number,
    invalid
  }
}
