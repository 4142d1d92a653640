/**
 * Sends what an app has in its outbox for one primitive, channel by channel.
 *
 * A channel is drained inside a transaction that holds its lock, so by one instance at a time: the first rows are read,
 * sent, and removed; then the commit. If it dies between sending and the commit, they are sent again by whoever is
 * next, and receivers know them. If only the commit fails, this one knows by itself.
 *
 * A channel stops at what cannot be sent, and tries again with backoff; where the primitive keeps no order, the rest is
 * sent. When rows are sent one by one and the broker takes others but not this one, it counts as a failure of the row,
 * and after {@link maxFailures} it is set aside.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type * as SqlClient from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Metrics from "../../Metrics.ts"
import { InvalidInput, Unavailable } from "../../Reason.ts"
import { stopGrace } from "../fibers.ts"
import { getOrMake } from "../getOrMake.ts"
import type { OutboxTable, Row } from "./OutboxTable.ts"

/** What a primitive does with its rows. */
export interface Sender {
  readonly app: string
  readonly kind: "sync" | "job"
  readonly instance: string
  /** Sends rows of one channel in their order. Tells for each why it was not sent, if it was not. */
  readonly send: (
    channel: string,
    rows: ReadonlyArray<Row>
  ) => Effect.Effect<ReadonlyArray<InvalidInput | Unavailable | undefined>>
  /** Whether the broker takes something else on the channel. */
  readonly probe: (channel: string) => Effect.Effect<boolean>
  /** A row of the channel will never be sent. */
  readonly onAside: (channel: string) => Effect.Effect<void>
}

export interface Relay {
  /** Looks at a channel soon. */
  readonly wake: (channel: string) => Effect.Effect<void>
}

/** Rows read at once. */
const batch = 500
/** And how much of their text. */
const batchBytes = 512 * 1024
/** A row that fails so often, while others do not, is set aside. */
const maxFailures = 5
/** Who holds a channel and does nothing on it for so long, in milliseconds, loses it; longer than brokers may take. */
const lockIdle = 15_000
/** How many channels are drained at a time, each on a connection to the database. */
const concurrency = 2

const capped = (first: number, most: number) =>
  Schedule.min([Schedule.exponential(first), Schedule.spaced(most)]).pipe(Schedule.jittered)

/** The database or the broker is away, or refuses something. */
const failureBackoff = capped(100, 5_000)
/** Another instance drains the channel, and may have looked before what is new was there. */
const busyBackoff = capped(5, 250)

class Busy extends Schema.TaggedError<Busy>("cohort/outbox/Busy")("Busy", {}) {}

/** What is known of a channel while it is drained. */
interface Channel {
  readonly name: string
  /** Rows that were sent, and whose removal is not known to be committed. */
  readonly sent: Set<string>
  /** How many rows to take: one by one after a failure, to find the one that is to blame. */
  size: number
  draining: boolean
  /** Whether it is being sent right now: worth waiting for. */
  sending: boolean
  /** Whether to look again. */
  again: boolean
}

export const make = (
  sql: SqlClient.SqlClient,
  table: OutboxTable,
  sender: Sender
): Effect.Effect<Relay, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { app, kind } = sender
    // Nothing of the caller's: neither its span nor its transaction.
    const runFork = Effect.runForkWith(yield* Effect.context<never>())
    const permits = yield* Semaphore.make(concurrency)
    const channels = new Map<string, Channel>()
    const running = new Map<Fiber.Fiber<void>, Channel>()
    let closing = false

    /** Counts the failures of a row, and sets it aside in the end. */
    const blame = (channel: Channel, row: Row, error: InvalidInput | Unavailable) => {
      const aside = error instanceof InvalidInput || row.failures + 1 >= maxFailures
      if (!aside) return table.fail(row.id, error.message, false)
      return Effect.andThen(
        Effect.logError("An outbox row cannot be sent; set aside", error).pipe(
          Effect.annotateLogs({ kind, channel: channel.name, row: row.id, message: row.message })
        ),
        Effect.andThen(table.fail(row.id, error.message, true), sender.onAside(channel.name))
      )
    }

    /** Sends some rows and removes them; answers how many are out of the way, and the failure that stopped it. */
    const pass = (channel: Channel) =>
      Effect.gen(function* () {
        const address = { app, kind, channel: channel.name }
        const lockedAt = yield* Clock.monotonicTimeNanos
        if (!(yield* table.lock(address, lockIdle))) return yield* new Busy()
        channel.sending = true
        const rows = yield* table.head(address, channel.size, batchBytes)
        if (rows.length === 0) return { failure: undefined, gone: 0, more: false }

        const unsent = rows.filter(({ id }) => !channel.sent.has(id))
        // One that was frozen has lost the channel by now, and would send what is long past.
        if ((yield* Clock.monotonicTimeNanos) - lockedAt > BigInt(lockIdle) * 1_000_000n) return yield* new Busy()
        const errors = unsent.length === 0 ? [] : yield* sender.send(channel.name, unsent)
        let failure: InvalidInput | Unavailable | undefined
        for (const [i, row] of unsent.entries()) {
          if (errors[i] === undefined) channel.sent.add(row.id)
          else failure ??= errors[i]
        }
        const gone = rows.filter(({ id }) => channel.sent.has(id))
        if (gone.length > 0) yield* table.remove(gone.map(({ id }) => id))

        if (failure !== undefined) {
          const alone = kind === "job" || unsent.length === 1
          const reachable = alone && (gone.length > 0 || (yield* sender.probe(channel.name)))
          for (const [i, row] of unsent.entries()) {
            const error = errors[i]
            if (error !== undefined && alone && (reachable || error instanceof InvalidInput)) {
              yield* blame(channel, row, error)
            }
          }
        }
        // UTF-8 takes at most three bytes for each of JavaScript's characters.
        const bytes = rows.reduce((sum, { payload }) => sum + 3 * payload.length, 0)
        const more = rows.length === channel.size || channel.size < batch || bytes >= batchBytes
        return { failure, gone: gone.length, more }
      }).pipe(
        sql.withTransaction,
        Effect.tap(({ failure, gone }) => {
          channel.sent.clear()
          channel.size = failure === undefined ? Math.min(channel.size * 2, batch) : 1
          return gone === 0 ? Effect.void : Metric.update(Metrics.outboxRelayed, gone)
        }),
        // A rollback on a connection that is gone is a defect, for one.
        Effect.catchDefect((defect) =>
          Effect.fail(new Unavailable({ backend: "outbox", detail: "relaying died", cause: defect }))
        ),
        // A database that says nothing must not keep a permit for ever.
        Effect.timeoutOrElse({
          duration: 2 * lockIdle,
          orElse: () => Effect.fail(new Unavailable({ backend: "outbox", detail: "relaying took too long" }))
        }),
        Effect.onExit(() => Effect.sync(() => (channel.sending = false))),
        permits.withPermit
      )

    const warn = (channel: Channel, error: SqlError | Unavailable | InvalidInput) =>
      Effect.annotateLogs(Effect.logWarning("Outbox not relayed; tried again", error.message), {
        kind,
        channel: channel.name
      })

    const drain = (channel: Channel): Effect.Effect<void> =>
      pass(channel).pipe(
        Effect.retry({ schedule: busyBackoff, while: (error) => error._tag === "Busy" && !closing }),
        Effect.flatMap(({ failure, more }) => (failure === undefined ? Effect.succeed(more) : Effect.fail(failure))),
        Effect.tapError((error) => (error._tag === "Busy" ? Effect.void : warn(channel, error))),
        Effect.retry({ schedule: failureBackoff, while: () => !closing }),
        Effect.repeat({ while: (more) => more && !closing }),
        Effect.ignore
      )

    const run = (channel: Channel): Effect.Effect<void> =>
      Effect.suspend(() => {
        channel.again = false
        return drain(channel)
      }).pipe(
        Effect.andThen(
          // In one go: who wakes it finds it draining, or starts it.
          Effect.suspend(() => {
            if (channel.again && !closing) return run(channel)
            channel.draining = false
            if (channel.sent.size === 0) channels.delete(channel.name)
            return Effect.void
          })
        )
      )

    const wake = (name: string): Effect.Effect<void> =>
      Effect.sync(() => {
        if (closing) return
        const channel = getOrMake(channels, name, () => ({
          name,
          sent: new Set<string>(),
          size: batch,
          draining: false,
          sending: false,
          again: false
        }))
        channel.again = true
        if (channel.draining) return
        channel.draining = true
        const fiber = runFork(run(channel))
        running.set(fiber, channel)
        fiber.addObserver(() => running.delete(fiber))
      })

    // What is being sent may end, so that it is not sent again by others.
    yield* Effect.addFinalizer(() =>
      Effect.suspend(() => {
        closing = true
        const sending = [...running].filter(([, channel]) => channel.sending).map(([fiber]) => fiber)
        return Effect.andThen(
          Fiber.interruptAll([...running.keys()].filter((fiber) => !sending.includes(fiber))),
          Effect.andThen(Effect.timeoutOption(Fiber.awaitAll(sending), stopGrace), Fiber.interruptAll(sending))
        )
      })
    )

    return { wake }
  })
