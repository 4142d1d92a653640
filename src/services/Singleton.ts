/**
 * Work that runs on one instance at a time, and moves when that one dies.
 *
 * ```ts
 * yield* Singleton.make("mail-poller", pollForever)
 * ```
 *
 * - Every instance that calls `make` is a candidate, until its scope closes. They wait in line for a lock; the one
 *   that has it runs the work.
 * - When its instance stops, the work is interrupted and the next candidate begins at once; when it dies or is cut
 *   off, within `ttl`. Work whose lease is lost is interrupted, as `Lock.runExclusive` promises; hand the fence to
 *   whatever must refuse a late writer.
 * - Work that fails is logged and passes to the next in line; this candidate waits (200 ms, doubling to 30 seconds) and
 *   lines up again. Work that succeeds is done for as long as its instance lives: nobody else begins it.
 *
 * @since 0.2.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { Instance } from "./Instance.ts"
import { brief } from "./internal/pretty.ts"
import * as Timers from "./internal/Timers.ts"
import * as Validate from "./internal/validate.ts"
import * as Lock from "./Lock.ts"
import type { InvalidInput } from "./Reason.ts"

/**
 * Options of {@link make}.
 *
 * @since 0.2.0
 */
export interface Options {
  /** How long a dead holder keeps the others waiting; positive and finite. Default 30 seconds. */
  readonly ttl?: Duration.Input | undefined
  /** The service this is work of: instances whose worker mode does not serve it are no candidates. Default: all are. */
  readonly service?: string | undefined
}

/** How long a candidate waits after its work failed. */
const standBack = Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("30 seconds")]).pipe(
  Schedule.jittered
)

/** Work that ran this long, in milliseconds, was well: what comes after it starts anew. */
const well = 60_000

/**
 * Makes this instance a candidate until the scope closes. Returns at once; fails with `InvalidInput` for the field
 * `name` or `ttl`.
 *
 * @since 0.2.0
 */
export const make = <E, R>(
  name: string,
  work: Effect.Effect<unknown, E, R> | ((lease: Lock.Lease) => Effect.Effect<unknown, E, R>),
  options: Options = {}
): Effect.Effect<void, InvalidInput, Lock.Lock | Instance | Exclude<R, Scope.Scope> | Scope.Scope> =>
  Effect.gen(function* () {
    const ttl = Validate.millis("ttl", options.ttl ?? "30 seconds")
    const invalid = Validate.name("name", name) ?? Validate.invalidOf(ttl)
    if (invalid !== undefined) return yield* Effect.fail(invalid)
    const { workerMode } = yield* Instance
    if (options.service !== undefined && !workerMode.serves(options.service)) return
    const { now } = yield* Timers.make

    const turn = Effect.suspend(() => {
      let begun: number | undefined
      return Lock.runExclusive(
        Validate.address("singleton", name),
        (lease) => {
          begun = now()
          const run = Effect.scoped(typeof work === "function" ? work(lease) : work)
          return Effect.andThen(run, Effect.never)
        },
        { ttl: ttl as number }
      ).pipe(
        Effect.exit,
        Effect.tap((exit) =>
          Exit.isSuccess(exit)
            ? Effect.void
            : Effect.logWarning("Singleton stopped; lining up again", brief(exit.cause))
        ),
        Effect.map(() => begun !== undefined && now() - begun >= well)
      )
    })

    yield* turn.pipe(
      Effect.repeat({ schedule: standBack, until: (wasWell) => wasWell }),
      Effect.forever,
      Effect.annotateLogs({ singleton: name }),
      Effect.forkScoped
    )
  })
