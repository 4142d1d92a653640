/**
 * What applies where a caller says nothing.
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"

/**
 * Read when the layers of the primitives are built; a value that makes no sense fails the first call that it
 * applies to, with `InvalidInput`.
 *
 * @since 0.2.0
 */
export interface Defaults {
  /** `ttl` of a lock. Default 30 seconds. */
  readonly lockTtl?: Duration.Input | undefined
  /** `lease` of a queue's worker. Default 30 seconds. */
  readonly queueLease?: Duration.Input | undefined
  /** `concurrency` of a queue's worker. Default 1. */
  readonly queueConcurrency?: number | undefined
  /** `shutdownTimeout` of a queue's worker. Default 30 seconds. */
  readonly shutdownTimeout?: Duration.Input | undefined
  /**
   * Whether what happens all the time is counted (messages, attempts, cache look-ups, how long handlers take), and logs
   * of handlers are annotated with channel, job, attempt and instance. Default `true`. What tells of trouble is counted
   * and annotated always; spans are made where a tracer is provided.
   */
  readonly telemetry?: boolean | undefined
}

/**
 * @since 0.2.0
 */
export const Defaults: Context.Reference<Defaults> = Context.Reference<Defaults>("cohort/services/Defaults", {
  defaultValue: () => ({})
})
