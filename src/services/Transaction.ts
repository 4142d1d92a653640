/**
 * What lasts as long as a database transaction.
 *
 * A lock that protects rows has to be held until they are committed: released earlier, its next holder still reads
 * what was there before. {@link runExclusive} holds it that long, also where a caller has begun the transaction around
 * the lock:
 *
 * ```ts
 * yield* sql.withTransaction(
 *   Effect.gen(function* () {
 *     yield* Transaction.runExclusive("fields:zip", removeField) // the lock is held from here …
 *     yield* audit("removed a field")
 *   })
 * ) // … to here, whether this commits or rolls back
 * ```
 *
 * `effect/sql` tells when a transaction has committed, but not when it was rolled back. {@link layer} makes a client
 * whose transactions tell both.
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { SqlClient } from "effect/sql/SqlClient"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import { openTransaction } from "./internal/afterCommit.ts"
import { getOrMake } from "./internal/getOrMake.ts"
import * as Lock from "./Lock.ts"
import { InvalidInput, Unavailable } from "./Reason.ts"

/** How long a transaction may wait for a lock: it holds a connection, and perhaps what the other waits for. */
const waitsAtMost = Duration.seconds(15)

interface Held {
  readonly turn: Semaphore.Semaphore
  lease?: Lock.Lease
}

/** An outermost transaction of a client that {@link layer} made. */
interface Open {
  readonly key: Context.Key<any, object>
  /** Closes when it has ended. */
  readonly scope: Scope.Closeable
  readonly locks: Map<string, Held>
  /** The one around it, of another client. */
  readonly around: Open | undefined
}

const Innermost = Context.Reference<Open | undefined>("cohort/services/Transaction", { defaultValue: () => undefined })

const lostReason = (lease: Lock.Lease) => new Lock.LockLost({ key: lease.key, fence: lease.fence })

/** Fails when a lock that the transaction holds was lost: what it protected may have been read by others. */
const checkLocks = (open: Open): Effect.Effect<void, SqlError> =>
  Effect.forEach(
    open.locks.values(),
    ({ lease }) =>
      lease === undefined
        ? Effect.void
        : Effect.flatMap(lease.isHeld, (isHeld) => {
            if (isHeld) return Effect.void
            const cause = new Lock.LockError({ reason: lostReason(lease) })
            return Effect.fail(
              new SqlError({ reason: new UnknownError({ cause, message: cause.message, operation: "commit" }) })
            )
          }),
    { discard: true }
  )

const bounded = (client: SqlClient): SqlClient => {
  const withTransaction: SqlClient["withTransaction"] = (effect) =>
    Effect.contextWith((context: Context.Context<never>) =>
      // A savepoint: what it locks is held until the outermost ends.
      Option.isSome(Context.getOption(context, client.transactionService))
        ? client.withTransaction(effect)
        : Effect.acquireUseRelease(
            Effect.map(
              Scope.make(),
              (scope): Open => ({
                key: client.transactionService,
                scope,
                locks: new Map(),
                around: Context.get(context, Innermost)
              })
            ),
            (open) =>
              client.withTransaction(
                Effect.provideService(
                  Effect.tap(effect, () => checkLocks(open)),
                  Innermost,
                  open
                )
              ),
            ({ scope }, exit) => Scope.close(scope, exit)
          )
    )
  const made: SqlClient = Object.assign(client.bind(undefined), client, { withTransaction })
  return Object.assign(made, { safe: made })
}

/**
 * The client in context, with transactions that {@link runExclusive} and {@link onEnd} know the end of. Provide it in
 * the client's place.
 *
 * A transaction that holds a lock which was lost does not commit: it fails with a `SqlError` whose cause says which.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<SqlClient, never, SqlClient> = Layer.effect(SqlClient, Effect.map(SqlClient, bounded))

/** The open transaction here, if {@link layer} made its client. */
const known = (context: Context.Context<never>, key: Context.Key<any, object>): Open | undefined => {
  let open = Context.get(context, Innermost)
  while (open !== undefined && open.key !== key) open = open.around
  return open
}

/**
 * Runs an effect when the outermost transaction here has ended, committed or not; at once when there is none. Of
 * several, the last one given runs first. In a transaction of a client that {@link layer} did not make, it runs after
 * the commit, and not after a rollback.
 *
 * @since 0.2.0
 */
export const onEnd = <R>(effect: Effect.Effect<void, never, R>): Effect.Effect<void, never, R> =>
  Effect.contextWith((context: Context.Context<R>) => {
    const transaction = openTransaction(context as Context.Context<never>)
    if (transaction === undefined) return effect
    const outside = Effect.provideContext(effect, Context.omit(transaction.key)(context) as Context.Context<R>)
    const open = known(context as Context.Context<never>, transaction.key)
    if (open !== undefined) return Scope.addFinalizer(open.scope, outside)
    return Effect.catch(transaction.defer(outside as Effect.Effect<void>), () => outside)
  })

/**
 * Like `Lock.runExclusive`, but in an open transaction the lock is held until the outermost has ended.
 *
 * - The transaction that holds a lock may ask for it again, one fiber at a time.
 * - Losing the lock interrupts the work, which fails with `LockLost`; after the work, it keeps the transaction from
 *   committing.
 * - A transaction waits for a lock for at most 15 seconds, then fails with `Unavailable`: two that wait for each other
 *   would never end. Take the lock before the transaction where that is possible.
 * - Fails with `InvalidInput` in a transaction that has ended, or whose client {@link layer} did not make: nothing would
 *   tell its end.
 *
 * @since 0.2.0
 */
export const runExclusive = <A, E, R>(
  key: string,
  work: Effect.Effect<A, E, R>,
  options?: Lock.LeaseOptions
): Effect.Effect<A, E | Lock.LockError, R | Lock.Lock> =>
  Effect.contextWith((context: Context.Context<R | Lock.Lock>) => {
    const transaction = openTransaction(context as Context.Context<never>)
    if (transaction === undefined) return Lock.runExclusive(key, work, options)
    const open = known(context as Context.Context<never>, transaction.key)
    if (open === undefined) return refuse("its client does not tell when it ends: provide it with Transaction.layer")
    if (open.scope.state._tag === "Closed") return refuse("has ended")
    const held = getOrMake(open.locks, key, (): Held => ({ turn: Semaphore.makeUnsafe(1) }))
    return Semaphore.withPermit(
      held.turn,
      Effect.gen(function* () {
        held.lease ??= yield* acquire(open, key, options)
        const { lease } = held
        const fail = (reason: Lock.LockLost) => Effect.fail(new Lock.LockError({ reason }))
        if (!(yield* lease.isHeld)) return yield* fail(lostReason(lease))
        return yield* Effect.raceFirst(work, Effect.flatMap(lease.lost, fail))
      })
    )
  })

const acquire = (open: Open, key: string, options: Lock.LeaseOptions | undefined) =>
  Effect.flatMap(
    Scope.provide(Lock.tryAcquire(key, { ...options, timeout: waitsAtMost }), open.scope),
    Option.match({
      onSome: Effect.succeed,
      onNone: () => {
        const detail = `"${key}" is held by another for ${Duration.format(waitsAtMost)}, and the transaction waits`
        return Effect.fail(new Lock.LockError({ reason: new Unavailable({ backend: "lock", detail }) }))
      }
    })
  )

const refuse = (detail: string) =>
  Effect.fail(new Lock.LockError({ reason: new InvalidInput({ field: "transaction", detail }) }))
