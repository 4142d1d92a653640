/**
 * The port that a lock backend implements.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Unavailable } from "./Reason.ts"

/**
 * A lock held.
 *
 * - `fence` strictly increases per key over every grant, across crashes and
 *   restarts of holders, and across a flushed store.
 * - `since` is monotonic time in milliseconds (`Clock.monotonicTimeNanos` / 1e6)
 *   and not later than the moment the backend granted: the holder counts its
 *   ttl from there.
 *
 * @since 0.1.0
 */
export interface Grant {
  readonly key: string
  readonly fence: number
  readonly since: number
}

/**
 * A lock that somebody holds, as it is looked at.
 *
 * @since 0.2.0
 */
export interface HeldLock {
  readonly key: string
  readonly fence: number
  /** Milliseconds until it ends at the latest, if it is not renewed. */
  readonly ttl: number
  /** The id of the instance that holds it. */
  readonly holder: string
  /** The ids of the instances that wait for it, first come first; one is there as often as it waits. */
  readonly waiters: ReadonlyArray<string>
}

/**
 * What a backend promises:
 *
 * - At most one grant per key is live at any time. A grant ends with `release`,
 *   or when `ttl` milliseconds have passed since it was made or last renewed.
 * - Waiters of all instances are served first come, first served, and are woken
 *   when it is their turn. A waiter whose process died is passed over.
 * - Every effect fails with `Unavailable` within a bound when the backend is away,
 *   except that `acquire` may wait as long as the lock is held by others.
 *
 * A `space` is the locks of one app; keys may hold any character.
 *
 * As with every port, the service calls a function inside a running effect and
 * runs what it returns at once and once: a store in memory may act in the call
 * and answer with an `Exit`.
 *
 * @since 0.1.0
 */
export class LockStore extends Context.Service<
  LockStore,
  {
    /** `"memory"`, `"redis"`, `"rabbitmq"`: names the backend in spans and errors. */
    readonly system: string
    /** Takes the lock if nobody holds it or waits for it; never waits. */
    readonly tryAcquire: (space: string, key: string, ttl: number) => Effect.Effect<Grant | undefined, Unavailable>
    /** Waits for its turn. Interruption withdraws the request, and gives back a grant that raced it. */
    readonly acquire: (space: string, key: string, ttl: number) => Effect.Effect<Grant, Unavailable>
    /**
     * Like `acquire`, by callback: `resume` gets the grant, in the call or later, and at most once; the function
     * that comes back withdraws, like interruption. A store that grants by callback anyway offers it, so that
     * what waits under contention is one fiber and not two.
     */
    readonly request?: (
      space: string,
      key: string,
      ttl: number,
      resume: (granted: Effect.Effect<Grant, Unavailable>) => void
    ) => () => void
    /** Starts the ttl again; `false` when the grant is no longer live. */
    readonly renew: (grant: Grant, ttl: number) => Effect.Effect<boolean, Unavailable>
    /** Ends the grant. Does nothing when it is no longer live. */
    readonly release: (grant: Grant) => Effect.Effect<void, Unavailable>
    /**
     * The locks of a space that are held, in no order; each as it is when it is looked at, and one that comes or goes
     * meanwhile may be missing. For people: it may look at everything there is.
     */
    readonly list?: (space: string) => Effect.Effect<ReadonlyArray<HeldLock>, Unavailable>
  }
>()("cohort/services/LockStore") {}
