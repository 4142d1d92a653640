/**
 * What every live instance says of itself while somebody looks at the cluster: what it has counted, its health, its
 * sync channels, its latest warnings.
 *
 * Whoever looks asks all instances at once, by broadcast, and waits a moment for their answers. An instance that is
 * silent is as it was last heard, until the others take it for dead; then its part goes.
 */
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import * as Health from "../../services/Health.ts"
import { Instance } from "../../services/Instance.ts"
import * as Metrics from "../../services/Metrics.ts"
import { PubSub } from "../../services/PubSub.ts"
import { QueueAlarms } from "../../services/QueueAlarms.ts"
import { SyncMessage } from "../../services/SyncMessage.ts"
import * as Topic from "../../services/Topic.ts"
import { RecentLog } from "./RecentLog.ts"

/** What an instance has warned of. */
export const Line = Schema.Struct({
  number: Schema.Int,
  at: Schema.DateTimeUtcFromMillis,
  level: Schema.String,
  text: Schema.String,
  about: Schema.String
})

export const Alarm = Schema.Struct({
  kind: Schema.Literals(["unserved", "dying"]),
  channel: Schema.String,
  count: Schema.Int
})

/** `null`: nothing is missing. */
export const Resync = Schema.NullOr(
  Schema.Struct({
    since: Schema.DateTimeUtcFromMillis,
    failures: Schema.Int,
    lastError: Schema.NullOr(Schema.String)
  })
)

/** Counts go up from when the instance started. */
export const Account = Schema.Struct({
  instance: Schema.String,
  at: Schema.DateTimeUtcFromMillis,
  health: Health.Report,
  alarms: Schema.Array(Alarm),
  /** Of jobs and broadcasts, by channel: handed to the broker; attempts that ended, and broadcasts handled. */
  sent: Schema.Record(Schema.String, Schema.Int),
  consumed: Schema.Record(Schema.String, Schema.Int),
  /** Look-ups, by cache. */
  hits: Schema.Record(Schema.String, Schema.Int),
  misses: Schema.Record(Schema.String, Schema.Int),
  sync: Schema.Array(
    Schema.Struct({
      channel: Schema.String,
      /** Its own last number, and those it has heard of the others. */
      sent: Schema.Int,
      last: Schema.Record(Schema.String, Schema.Int),
      resync: Resync
    })
  ),
  /** Moments in which broadcasts may have been missed, and leases lost. */
  gaps: Schema.Int,
  leasesLost: Schema.Int,
  /** The latest only. */
  log: Schema.Array(Line)
})
export type Account = typeof Account.Type

const Word = Schema.Union([
  Schema.Struct({ _tag: Schema.tag("Ask") }),
  Schema.Struct({ _tag: Schema.tag("Tell"), account: Account })
])
const Words = Topic.make("cohort.console", Word)

/** How long whoever looks waits for who does not answer. */
const patience = "300 millis"
/** How many lines of its log an instance tells the others. */
const told = 10

export class Accounts extends Context.Service<
  Accounts,
  {
    /** Asks these instances, this one among them, and answers with what is known of each. */
    readonly of: (instances: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<Account>>
  }
>()("cohort/host/page/Accounts") {}

/** Sums of an instance's counters, by an attribute of theirs. */
const sums = (snapshots: ReadonlyArray<Metric.Metric.Snapshot>, instance: string) => {
  return (metric: { readonly id: string }, attribute: string): Record<string, number> => {
    const found = new Map<string, number>()
    for (const { attributes, id, state } of snapshots) {
      if (id !== metric.id) continue
      const by = attributes?.["messaging.client.id"]
      if (by !== undefined && by !== instance) continue
      const key = attributes?.[attribute] ?? ""
      found.set(key, (found.get(key) ?? 0) + Number((state as Metric.CounterState<number>).count))
    }
    return Object.fromEntries(found)
  }
}

const total = (counts: Record<string, number>) => Object.values(counts).reduce((a, b) => a + b, 0)

const make = Effect.gen(function* () {
  const { id } = yield* Instance
  const health = yield* Health.Health
  const alarms = yield* QueueAlarms
  const sync = yield* SyncMessage
  const log = yield* RecentLog
  const pubsub = yield* PubSub
  const metrics = yield* Effect.context<never>()

  const own = Effect.gen(function* () {
    const sum = sums(Metric.snapshotUnsafe(metrics), id)
    const destination = "messaging.destination.name"
    const status = yield* sync.status
    return {
      instance: id,
      at: yield* DateTime.now,
      health: yield* health.report,
      alarms: yield* alarms.current,
      sent: sum(Metrics.sent, destination),
      consumed: sum(Metrics.consumed, destination),
      hits: sum(Metrics.cacheHits, "cohort.cache.name"),
      misses: sum(Metrics.cacheMisses, "cohort.cache.name"),
      sync: status.receivers.map(({ channel, last, resync }) => ({
        channel,
        sent: status.sent[channel] ?? 0,
        last,
        resync: resync === undefined ? null : { ...resync, lastError: resync.lastError ?? null }
      })),
      gaps: total(sum(Metrics.gaps, destination)),
      leasesLost: total(sum(Metrics.leasesLost, destination)),
      log: yield* log.lines
    } satisfies Account
  })

  const heard = new Map<string, Account>()
  /** Of those who look now: whom they still wait for. */
  const looking = new Set<{ readonly missing: Set<string>; readonly answered: Deferred.Deferred<void> }>()

  yield* pubsub.subscribe(Words, (word) =>
    Effect.gen(function* () {
      if (word._tag === "Ask") {
        const account = yield* own
        yield* pubsub.publish(Words, { _tag: "Tell", account: { ...account, log: account.log.slice(-told) } })
        return
      }
      heard.set(word.account.instance, word.account)
      for (const { answered, missing } of looking) {
        missing.delete(word.account.instance)
        if (missing.size === 0) yield* Deferred.succeed(answered, undefined)
      }
    })
  )

  return Accounts.of({
    of: (instances) =>
      Effect.gen(function* () {
        const look = { missing: new Set(instances), answered: yield* Deferred.make<void>() }
        look.missing.delete(id)
        if (look.missing.size > 0) {
          looking.add(look)
          yield* Effect.andThen(pubsub.publish(Words, { _tag: "Ask" }), Deferred.await(look.answered)).pipe(
            // Who cannot ask still tells what is known.
            Effect.ignore,
            Effect.timeoutOption(patience),
            Effect.ensuring(Effect.sync(() => looking.delete(look)))
          )
        }
        for (const known of heard.keys()) if (!instances.includes(known)) heard.delete(known)
        const self = yield* own
        return instances.flatMap((instance) => (instance === id ? self : (heard.get(instance) ?? [])))
      })
  })
})

export const layer = Layer.effect(Accounts, make)
