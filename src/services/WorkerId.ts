/**
 * A small number that no other live instance of the app has, for generators of ids.
 *
 * ```ts
 * const worker = yield* WorkerId.current // 0, 1, 2, …
 * ```
 *
 * The lowest free number is taken under a `Lock` and held with a lease. When the lease is lost (the process was
 * paused, the backend was away for longer than `ttl`) `current` fails until another number is held, which may be a
 * different one: ask for it whenever an id is made, rather than once.
 *
 * Two instances have the same number only where the backend gives a lock to two holders.
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Validate from "./internal/validate.ts"
import * as Lock from "./Lock.ts"
import { InvalidInput, Unavailable } from "./Reason.ts"

/**
 * All numbers are taken.
 *
 * @since 0.2.0
 */
export class Exhausted extends Schema.TaggedError<Exhausted>("cohort/Exhausted")("Exhausted", {
  count: Schema.Int
}) {
  override get message(): string {
    return `all ${this.count} worker ids are taken`
  }
}

/**
 * The lease of the number was lost; another is being looked for.
 *
 * @since 0.2.0
 */
export class NotHeld extends Schema.TaggedError<NotHeld>("cohort/NotHeld")("NotHeld", {}) {
  override get message(): string {
    return "this instance has no worker id at the moment"
  }
}

/**
 * What can go wrong with a worker id. `reason` tells which: `InvalidInput`, `Unavailable`, `Exhausted` or `NotHeld`.
 *
 * @since 0.2.0
 */
export class WorkerIdError extends Schema.TaggedError<WorkerIdError>("cohort/WorkerIdError")("WorkerIdError", {
  reason: Schema.Union([InvalidInput, Unavailable, Exhausted, NotHeld])
}) {
  override readonly cause: unknown = this.reason.cause
  override get message(): string {
    return this.reason.message
  }
}

/**
 * The number of this instance.
 *
 * @since 0.2.0
 */
export class WorkerId extends Context.Service<
  WorkerId,
  {
    /** From 0 to `count - 1`; fails with `NotHeld` while there is none. */
    readonly current: Effect.Effect<number, WorkerIdError>
  }
>()("cohort/services/WorkerId") {}

/**
 * The number of this instance, if its lease is held at this moment.
 *
 * @since 0.2.0
 */
export const current: Effect.Effect<number, WorkerIdError, WorkerId> = WorkerId.use(({ current }) => current)

/**
 * Options of {@link layerWith}.
 *
 * @since 0.2.0
 */
export interface Options {
  /** How many numbers there are. Default 1,024, the ten bits of a Snowflake id. */
  readonly count?: number | undefined
  /** How long the number of a dead instance stays taken; positive and finite. Default 30 seconds. */
  readonly ttl?: Duration.Input | undefined
}

/** How long to wait before looking for another number again. */
const again = Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("10 seconds")]).pipe(Schedule.jittered)

/**
 * Makes the service: returns when a number is held.
 *
 * @since 0.2.0
 */
export const make = (
  options: Options = {}
): Effect.Effect<WorkerId["Service"], WorkerIdError, Lock.Lock | Scope.Scope> =>
  Effect.gen(function* () {
    const count = Validate.integer("count", options.count ?? 1_024, 1)
    const ttl = Validate.millis("ttl", options.ttl ?? "30 seconds")
    if (count instanceof InvalidInput) return yield* fail(count)
    if (ttl instanceof InvalidInput) return yield* fail(ttl)

    let held: { readonly number: number; readonly lease: Lock.Lease } | undefined

    const take = Effect.gen(function* () {
      for (let number = 0; number < count; number++) {
        const lease = yield* Effect.mapError(
          Lock.tryAcquire(Validate.address("worker-id", String(number)), { ttl }),
          ({ reason }) => new WorkerIdError({ reason: reason._tag === "LockLost" ? new NotHeld() : reason })
        )
        if (Option.isSome(lease)) {
          held = { number, lease: lease.value }
          return lease.value
        }
      }
      return yield* fail(new Exhausted({ count }))
    })

    const first = yield* Deferred.make<void, WorkerIdError>()
    const hold = Effect.gen(function* () {
      const lease = yield* Effect.tapError(take, (error) => Deferred.fail(first, error))
      yield* Deferred.succeed(first, undefined)
      yield* lease.lost
      held = undefined
      yield* Effect.logWarning("Worker id lost; looking for another")
    }).pipe(Effect.scoped)
    yield* hold.pipe(
      Effect.tapError((error) => Effect.logWarning("No worker id", error.message)),
      Effect.retry(again),
      Effect.forever,
      Effect.forkScoped
    )
    yield* Deferred.await(first)

    return WorkerId.of({
      current: Effect.suspend(() => {
        const now = held
        if (now === undefined) return fail(new NotHeld())
        return Effect.flatMap(now.lease.isHeld, (isHeld) => (isHeld ? Effect.succeed(now.number) : fail(new NotHeld())))
      })
    })
  })

const fail = (reason: WorkerIdError["reason"]) => Effect.fail(new WorkerIdError({ reason }))

/**
 * Provides {@link WorkerId} on `Lock`. Fails when there is no number to be had.
 *
 * @since 0.2.0
 */
export const layerWith = (options: Options): Layer.Layer<WorkerId, WorkerIdError, Lock.Lock> =>
  Layer.effect(WorkerId, make(options))

/**
 * Provides {@link WorkerId} with the default options.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<WorkerId, WorkerIdError, Lock.Lock> = layerWith({})
