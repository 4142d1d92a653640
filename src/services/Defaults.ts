/**
 * What applies where a caller says nothing.
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"

/**
 * Read when the layers of `Lock` and `EventQueue` are built; a value that makes no sense fails the first call that it
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
}

/**
 * @since 0.2.0
 */
export const Defaults: Context.Reference<Defaults> = Context.Reference<Defaults>("cohort/services/Defaults", {
  defaultValue: () => ({})
})
