/**
 * Sync messages and jobs that a crash between commit and publish cannot lose.
 *
 * ```ts
 * const Backend = Cohort.layerRedis({ app: "shop" }).pipe(
 *   Layer.provide(SyncOutbox.layer),
 *   Layer.provideMerge(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))
 * )
 *
 * yield* sql.withTransaction(Effect.gen(function* () {
 *   yield* fields.remove(collection, field)
 *   yield* SyncMessage.publish(SchemaChanged, { collection, field })
 *   yield* EventQueue.publish(Reindex, { collection }, { afterCommit: true })
 * }))
 * ```
 *
 * Opt in, by providing this layer to the primitives. Then `SyncMessage.publish`, and `EventQueue.publish` with
 * `afterCommit`, write a row into the caller's transaction instead of sending:
 *
 * - **One statement.** The row commits, or rolls back, with what it tells of. `publish` fails when it cannot be written.
 *   Outside a transaction the row is a transaction of its own; in a transaction of another database, it is written after
 *   the commit of that one, like any message without an outbox.
 * - **At least once.** Right after the commit the instance that wrote it sends it; what is left over, because that one
 *   died or the broker is away, any instance sends within `interval`. Whoever receives a sync message a second time
 *   within two minutes drops it, and so does the queue with a job; one with an `id` of its own for as long as that says.
 * - **In commit order** per channel: a transaction that saw, or waited for, another one comes after it.
 *   One instance at a time relays a channel.
 * - **Nothing stays behind.** What was sent is removed. A row that the broker refuses five times while it takes others
 *   is set aside in the table (`failed_at`, `error`), logged and counted, and the channel goes on; for a sync message,
 *   receivers resync.
 *
 * On PostgreSQL 11 or newer, in the table `cohort_outbox` that the layer's migrations make.
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import type * as Scope from "effect/Scope"
import * as Migrator from "effect/sql/Migrator"
import * as SqlClient from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Health from "./Health.ts"
import * as AfterCommit from "./internal/afterCommit.ts"
import * as OutboxTable from "./internal/outbox/OutboxTable.ts"
import * as Relay from "./internal/outbox/Relay.ts"
import { brief } from "./internal/pretty.ts"
import * as Validate from "./internal/validate.ts"
import * as Metrics from "./Metrics.ts"
import { type InvalidInput, Unavailable } from "./Reason.ts"

/**
 * What waits on a channel of the outbox.
 *
 * @since 0.2.0
 */
export interface ChannelStatus {
  readonly app: string
  readonly kind: string
  readonly channel: string
  /** How many rows wait to be sent. */
  readonly depth: number
  /** Milliseconds since the oldest of them was written. */
  readonly age: number
  /** How many rows were set aside. */
  readonly failed: number
}

/** What is written, of a channel of the sender. */
type Message = Pick<OutboxTable.NewRow, "channel" | "message" | "payload">

/** How a primitive writes into its part of the outbox. */
export interface Outbox {
  readonly write: (message: Message) => Effect.Effect<void, InvalidInput | Unavailable>
}

/**
 * The outbox of an app. The primitives look for it when their layers are built.
 *
 * @since 0.2.0
 */
export class SyncOutbox extends Context.Service<
  SyncOutbox,
  {
    /** The channels with rows, of the apps whose primitives use this outbox. */
    readonly status: Effect.Effect<ReadonlyArray<ChannelStatus>, Unavailable>
    /** For primitives: writes, and relays as long as the scope lives. */
    readonly open: (sender: Relay.Sender) => Effect.Effect<Outbox, never, Scope.Scope>
  }
>()("cohort/services/SyncOutbox") {}

/**
 * Options of {@link layerWith}.
 *
 * @since 0.2.0
 */
export interface Options {
  /** How often an instance looks for what others have left over; positive. Default 2 seconds. */
  readonly interval?: Duration.Input | undefined
}

const unavailable = (error: SqlError) =>
  new Unavailable({ backend: "outbox", detail: error.message, cause: error.reason.cause })

/** From which age on, in milliseconds, a row that waits wants looking at. */
const lateAfter = 60_000

/** How long a row may take that is a transaction of its own. */
const writeTimeout = "5 seconds"

/**
 * Makes the service on the `SqlClient` in context, whose transactions it joins.
 *
 * @since 0.2.0
 */
export const make = (
  options: Options = {}
): Effect.Effect<
  SyncOutbox["Service"],
  InvalidInput | Migrator.MigrationError | SqlError,
  SqlClient.SqlClient | Scope.Scope
> =>
  Effect.gen(function* () {
    const interval = Validate.millis("interval", options.interval ?? "2 seconds")
    if (typeof interval !== "number") return yield* Effect.fail(interval)
    const sql = yield* SqlClient.SqlClient
    const table = yield* OutboxTable.make(sql)
    const afterCommit = yield* AfterCommit.make<InvalidInput | Unavailable>((reason) => reason)
    yield* Migrator.make({})({
      loader: Migrator.fromRecord(table.migrations),
      table: "cohort_outbox_migrations"
    })

    const relays = new Map<Relay.Sender, Relay.Relay>()

    const status = Effect.suspend(() =>
      Effect.forEach(new Set(Array.from(relays.keys(), ({ app }) => app)), (app) =>
        Effect.map(table.depths(app), (depths) => depths.map((depth) => ({ app, ...depth })))
      )
    ).pipe(
      Effect.map((depths) => depths.flat()),
      Effect.mapError(unavailable)
    )

    const measure = (kind: string, channels: ReadonlyArray<ChannelStatus>) => {
      const of = channels.filter((channel) => channel.kind === kind)
      const total = (field: "depth" | "failed") => of.reduce((sum, channel) => sum + channel[field], 0)
      const gauge = (metric: typeof Metrics.outboxDepth, value: number) =>
        Metric.update(Metric.withAttributes(metric, { kind }), value)
      return Effect.all([
        gauge(Metrics.outboxDepth, total("depth")),
        gauge(Metrics.outboxFailed, total("failed")),
        gauge(Metrics.outboxAge, Math.max(0, ...of.map(({ age }) => age)) / 1_000)
      ])
    }

    const look = Effect.gen(function* () {
      const channels = yield* Effect.timeout(status, interval * 10)
      for (const kind of new Set(Array.from(relays.keys(), ({ kind }) => kind))) yield* measure(kind, channels)
      for (const [sender, relay] of relays) {
        for (const { app, channel, depth, kind } of channels) {
          if (depth > 0 && app === sender.app && kind === sender.kind) yield* relay.wake(channel)
        }
      }
    })

    yield* Effect.catchCause(look, (cause) => Effect.logWarning("Cannot look into the outbox", brief(cause))).pipe(
      Effect.delay(interval),
      Effect.forever,
      Effect.forkScoped
    )

    yield* Health.register(
      "outbox",
      Effect.match(status, {
        onFailure: ({ message }) => Health.down(message),
        onSuccess: (channels) => {
          const late = channels.filter(({ age, depth, failed }) => failed > 0 || (depth > 0 && age > lateAfter))
          if (late.length === 0) return Health.up
          return Health.degraded(
            late
              .map(({ channel, depth, failed }) => `"${channel}" has ${depth} rows waiting and ${failed} set aside`)
              .join("; ")
          )
        }
      })
    )

    return SyncOutbox.of({
      status,
      open: (sender) =>
        Effect.gen(function* () {
          const relay = yield* Relay.make(sql, table, sender)
          yield* Effect.acquireRelease(
            Effect.sync(() => relays.set(sender, relay)),
            () => Effect.sync(() => relays.delete(sender))
          )
          const { app, instance: origin, kind } = sender
          const write = (message: Message): Effect.Effect<void, InvalidInput | Unavailable> =>
            Effect.withFiber((fiber) => {
              const { channel } = message
              const insert = Effect.mapError(table.insert({ app, kind, origin, ...message }), unavailable)
              const transaction = AfterCommit.openTransaction(fiber.context, sql.transactionService)
              // First, as it fails in a transaction that has ended, whose connection is someone else's by now.
              if (transaction?.key === sql.transactionService) {
                return Effect.asVoid(Effect.andThen(transaction.defer(relay.wake(channel)), insert))
              }
              const own = Effect.timeoutOrElse(insert, {
                duration: writeTimeout,
                orElse: () => Effect.fail(new Unavailable({ backend: "outbox", detail: "no answer in time" }))
              })
              return afterCommit.send(Effect.andThen(own, relay.wake(channel)), undefined, { kind, channel })
            })
          return { write }
        })
    })
  })

/**
 * Provides {@link SyncOutbox} on the `SqlClient` in context. Provide it to the primitives, beneath their layers.
 *
 * @since 0.2.0
 */
export const layerWith = (
  options: Options
): Layer.Layer<SyncOutbox, InvalidInput | Migrator.MigrationError | SqlError, SqlClient.SqlClient> =>
  Layer.effect(SyncOutbox, make(options))

/**
 * {@link layerWith} the default options.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<SyncOutbox, InvalidInput | Migrator.MigrationError | SqlError, SqlClient.SqlClient> =
  layerWith({})
