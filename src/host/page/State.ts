/**
 * Looks at the cluster from one instance. Depths, locks and members are the cluster's; what is counted is this
 * instance's own.
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import { EventQueue } from "../../services/EventQueue.ts"
import * as Health from "../../services/Health.ts"
import { Instance } from "../../services/Instance.ts"
import * as Job from "../../services/Job.ts"
import * as Lock from "../../services/Lock.ts"
import { Membership } from "../../services/Membership.ts"
import * as Metrics from "../../services/Metrics.ts"
import { PluginHost } from "../../services/PluginHost.ts"
import { QueueAlarms } from "../../services/QueueAlarms.ts"
import { SyncMessage } from "../../services/SyncMessage.ts"
import type { Known, State } from "./Api.ts"
import { RecentLog } from "./RecentLog.ts"

/** A job of whatever shape. */
export const jobOf = (channel: string) => Job.make(channel, Schema.Json)

/** How long a part may take. */
const patience = "2 seconds"
/** However many look, the backends are asked this often. */
const freshFor = "800 millis"
/** Listing locks may look at everything that there is. */
const locksFreshFor = "2 seconds"

const known = <A, E extends { readonly message: string }, R>(
  effect: Effect.Effect<A, E, R>
): Effect.Effect<Known<A>, never, R> =>
  effect.pipe(
    Effect.map((value): Known<A> => ({ value })),
    Effect.catch(({ message }) => Effect.succeed<Known<A>>({ error: message })),
    Effect.timeoutOrElse({
      duration: patience,
      orElse: () => Effect.succeed<Known<A>>({ error: `no answer within ${patience}` })
    })
  )

/** How often an instance is there. */
const counted = (instances: ReadonlyArray<string>) => {
  const counts = new Map<string, number>()
  for (const instance of instances) counts.set(instance, (counts.get(instance) ?? 0) + 1)
  return Array.from(counts, ([instance, count]) => ({ instance, count }))
}

/** Sums of an instance's counters, by an attribute of theirs. */
const sums = (snapshots: ReadonlyArray<Metric.Metric.Snapshot>, instance: string) => {
  return (metric: { readonly id: string }, attribute: string): Map<string, number> => {
    const found = new Map<string, number>()
    for (const { attributes, id, state } of snapshots) {
      if (id !== metric.id) continue
      const by = attributes?.["messaging.client.id"]
      if (by !== undefined && by !== instance) continue
      const key = attributes?.[attribute] ?? ""
      found.set(key, (found.get(key) ?? 0) + Number((state as Metric.CounterState<number>).count))
    }
    return found
  }
}

export const make = (options: { readonly actions: boolean }) =>
  Effect.gen(function* () {
    const { app, id } = yield* Instance
    const health = yield* Health.Health
    const membership = yield* Membership
    const queue = yield* EventQueue
    const alarms = yield* QueueAlarms
    const sync = yield* SyncMessage
    const plugins = yield* PluginHost
    const log = yield* RecentLog
    const metrics = yield* Effect.context<never>()
    const locks = yield* Effect.cachedWithTTL(
      known(
        Effect.map(Effect.provide(Lock.list, yield* Effect.context<Lock.Lock>()), (locks) =>
          locks.map((lock) => ({ ...lock, waiters: counted(lock.waiters) }))
        )
      ),
      locksFreshFor
    )

    const look = Effect.gen(function* () {
      const members = yield* membership.members
      const servedBy = new Map<string, Array<string>>()
      for (const member of members) {
        for (const { channel, serving } of member.queues) {
          const ids = servedBy.get(channel) ?? []
          servedBy.set(channel, serving ? [...ids, member.id] : ids)
        }
      }
      const sum = sums(Metric.snapshotUnsafe(metrics), id)
      const destination = "messaging.destination.name"
      const sent = sum(Metrics.sent, destination)
      const consumed = sum(Metrics.consumed, destination)
      const hits = sum(Metrics.cacheHits, "cohort.cache.name")
      const misses = sum(Metrics.cacheMisses, "cohort.cache.name")
      const total = (counts: Map<string, number>) => [...counts.values()].reduce((a, b) => a + b, 0)

      const [report, channels, held] = yield* Effect.all(
        [
          health.report,
          Effect.forEach(
            [...servedBy].sort(([a], [b]) => (a < b ? -1 : 1)),
            ([channel, servedBy]) =>
              Effect.map(known(queue.depth(jobOf(channel))), (depth) => ({
                channel,
                depth,
                servedBy,
                sent: sent.get(channel) ?? 0,
                consumed: consumed.get(channel) ?? 0
              })),
            { concurrency: 10 }
          ),
          locks
        ],
        { concurrency: "unbounded" }
      )
      const status = yield* sync.status
      return {
        app,
        instance: id,
        at: yield* DateTime.now,
        actions: options.actions,
        health: report,
        plugins: yield* plugins.plugins,
        members,
        channels,
        alarms: yield* alarms.current,
        locks: held,
        caches: [...new Set([...hits.keys(), ...misses.keys()])]
          .sort()
          .map((name) => ({ name, hits: hits.get(name) ?? 0, misses: misses.get(name) ?? 0 })),
        sync: status.receivers.map(({ channel, last, resync }) => ({
          channel,
          sent: status.sent[channel] ?? 0,
          last,
          resync: resync === undefined ? null : { ...resync, lastError: resync.lastError ?? null }
        })),
        topics: [...new Set([...sent.keys(), ...consumed.keys()])]
          .filter((name) => !servedBy.has(name))
          .sort()
          .map((name) => ({ name, sent: sent.get(name) ?? 0, consumed: consumed.get(name) ?? 0 })),
        gaps: total(sum(Metrics.gaps, destination)),
        leasesLost: total(sum(Metrics.leasesLost, destination)),
        log: yield* log.lines
      } satisfies typeof State.Type
    })
    return yield* Effect.cachedWithTTL(look, freshFor)
  })
