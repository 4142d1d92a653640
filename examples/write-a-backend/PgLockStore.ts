import { createHash, randomUUID } from "node:crypto"
import { PgClient } from "@effect/sql-pg"
import { Clock, Deferred, Duration, Effect, Layer, Queue, Schedule } from "effect"
import { SqlClient, type SqlError } from "effect/sql"
import { LockStore, Reason } from "cohort"
import * as Schema from "./schema.ts"

export interface Options {
  /** How long PostgreSQL may take to answer. Default 5 seconds. */
  readonly timeout?: Duration.Input
}

/** How long a waiter that went silent keeps its place, in milliseconds; it asks again after half of that. */
const patience = 2_000

const reconnecting = Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("2 seconds")]).pipe(
  Schedule.jittered
)

interface Asked {
  readonly granted: boolean
  readonly fence: number
  readonly ask_again_in: number
}

/** What `renew` and `release` need to know of a grant. */
interface PgGrant extends LockStore.Grant {
  readonly lock: string
  readonly owner: string
}

export const make = (options: Options = {}) =>
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const scope = yield* Effect.scope
    const timeout = Duration.fromInputUnsafe(options.timeout ?? "5 seconds")

    const unavailable = (detail: string, cause?: unknown) =>
      new Reason.Unavailable({ backend: "postgres", detail, cause })

    /** Every operation ends within the timeout, typed. */
    const bounded = <A>(query: Effect.Effect<A, SqlError.SqlError>): Effect.Effect<A, Reason.Unavailable> =>
      query.pipe(
        Effect.mapError((error) => unavailable(error.message, error)),
        Effect.timeoutOrElse({
          duration: timeout,
          orElse: () => Effect.fail(unavailable(`no answer within ${Duration.format(timeout)}`))
        })
      )

    // Names of a request: unique over all processes.
    const process = randomUUID()
    let requests = 0
    const newOwner = () => `${process}:${++requests}`

    // Keys may hold any character and be long: PostgreSQL gets their hash.
    const lockOf = (space: string, key: string) =>
      createHash("sha256")
        .update(JSON.stringify([space, key]))
        .digest("hex")

    const ask = (lock: string, owner: string, ttl: number, patience: number) =>
      Effect.gen(function* () {
        // From before the request is sent: the holder must never believe in its lease for longer than PostgreSQL does.
        const since = Number(yield* Clock.monotonicTimeNanos) / 1e6
        const [asked] = yield* bounded(
          sql<Asked>`SELECT * FROM cohort_lock_ask(${lock}, ${owner}, ${ttl}, ${patience})`
        )
        return { ...asked!, since }
      })

    const leave = (lock: string, owner: string) =>
      bounded(Effect.asVoid(sql`SELECT cohort_lock_leave(${lock}, ${owner})`))

    // One connection of the process listens for all its waiters.
    const waiting = new Map<string, Deferred.Deferred<void>>()
    const wake = (owner: string) => {
      const turn = waiting.get(owner)
      return turn === undefined ? Effect.void : Deferred.succeed(turn, undefined)
    }
    const listening = yield* Deferred.make<void>()
    yield* Effect.scoped(
      Effect.gen(function* () {
        const turns = yield* sql.listen("cohort_lock")
        yield* Deferred.succeed(listening, undefined)
        // What was said before, nobody heard.
        yield* Effect.forEach([...waiting.keys()], wake)
        return yield* Effect.forever(Effect.flatMap(Queue.take(turns), ({ payload }) => wake(payload)))
      })
    ).pipe(Effect.retry(reconnecting), Effect.forkScoped)
    yield* bounded(Deferred.await(listening))
    yield* bounded(
      Effect.provideService(Effect.andThen(sql.withTransaction(Schema.create), Schema.sweep), SqlClient.SqlClient, sql)
    )

    /** Asks, and waits to be told to ask again, until the lock is granted. */
    const acquire = (space: string, key: string, ttl: number) =>
      Effect.uninterruptibleMask((restore) => {
        const lock = lockOf(space, key)
        const owner = newOwner()
        const granted = Effect.gen(function* () {
          while (true) {
            // Before asking, so that no word is missed.
            const turn = yield* Deferred.make<void>()
            waiting.set(owner, turn)
            // Not to be interrupted: leaving must not overtake a question that is on its way.
            const { ask_again_in, fence, granted, since } = yield* ask(lock, owner, ttl, patience)
            // If it was interrupted meanwhile, it ends here, and gives back what it was granted.
            yield* restore(granted ? Effect.void : Effect.timeoutOption(Deferred.await(turn), ask_again_in))
            if (granted) return { key, lock, owner, fence, since }
          }
        })
        return granted.pipe(
          Effect.onInterrupt(() => Effect.ignore(leave(lock, owner))),
          // Not answered, it may be in the queue all the same; its caller is told without waiting for that.
          Effect.tapError(() => Effect.forkIn(Effect.ignore(leave(lock, owner)), scope)),
          Effect.ensuring(Effect.sync(() => waiting.delete(owner)))
        )
      })

    return LockStore.LockStore.of({
      system: "postgres",
      acquire,
      tryAcquire: (space, key, ttl) =>
        Effect.gen(function* () {
          const lock = lockOf(space, key)
          const owner = newOwner()
          const { fence, granted, since } = yield* ask(lock, owner, ttl, 0)
          return granted ? { key, lock, owner, fence, since } : undefined
        }),
      renew: (grant, ttl) => {
        const { owner } = grant as PgGrant
        return bounded(sql`
          UPDATE cohort_lock SET expires_at = clock_timestamp() + ${ttl} * interval '1 millisecond'
          WHERE owner = ${owner} AND held AND expires_at > clock_timestamp()
          RETURNING owner`).pipe(Effect.map((renewed) => renewed.length > 0))
      },
      release: (grant) => {
        const { lock, owner } = grant as PgGrant
        return leave(lock, owner)
      }
    })
  })

/** Locks on the PostgreSQL of the `PgClient` in context. */
export const layer = (options?: Options) => Layer.effect(LockStore.LockStore, make(options))
