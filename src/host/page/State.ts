/**
 * Looks at the cluster from one instance: depths and locks are asked of the backends, what is counted of every instance.
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import { EventQueue } from "../../services/EventQueue.ts"
import { Instance } from "../../services/Instance.ts"
import * as Schema from "effect/Schema"
import * as Job from "../../services/Job.ts"
import * as Lock from "../../services/Lock.ts"
import { Membership } from "../../services/Membership.ts"
import { type Account, Accounts } from "./Accounts.ts"
import type { Known, State } from "./Api.ts"

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

type Counts = "sent" | "consumed" | "hits" | "misses"

/**
 * Sums of what instances have counted, and how fast it grows: of each by itself and by its own clock, between the last
 * two times that it was looked at. So the rate of one that came or died is no jump of the sum.
 */
export const totals = (before: ReadonlyMap<string, Account>, now: ReadonlyArray<Account>) => ({
  count: (what: Counts, key: string) => now.reduce((sum, account) => sum + (account[what][key] ?? 0), 0),
  rate: (what: Counts, key: string) => now.reduce((sum, account) => sum + rateOf(before, account, what, key), 0)
})

/** Per second, to a tenth; 0 where it is not known yet, or not heard of since. */
const rateOf = (before: ReadonlyMap<string, Account>, account: Account, what: Counts, key: string): number => {
  const last = before.get(account.instance)
  const millis = last === undefined ? 0 : account.at.epochMilliseconds - last.at.epochMilliseconds
  if (last === undefined || millis <= 0) return 0
  return Math.round((((account[what][key] ?? 0) - (last[what][key] ?? 0)) * 10_000) / millis) / 10
}

/** Messages that others have sent, as they say, and an instance has not heard; of one it knows nothing of, none. */
export const behind = (accounts: ReadonlyArray<Account>, { sync }: Account, channel: string): number => {
  const heard = sync.find((one) => one.channel === channel)?.last ?? {}
  return accounts.reduce((sum, { instance, sync }) => {
    const sent = sync.find((one) => one.channel === channel)?.sent ?? 0
    return sum + Math.max(0, sent - (heard[instance] ?? sent))
  }, 0)
}

export const make = (options: { readonly actions: boolean }) =>
  Effect.gen(function* () {
    const { app, id } = yield* Instance
    const accounts = yield* Accounts
    const membership = yield* Membership
    const queue = yield* EventQueue
    const locks = yield* Effect.cachedWithTTL(
      known(
        Effect.map(Effect.provide(Lock.list, yield* Effect.context<Lock.Lock>()), (locks) =>
          locks.map((lock) => ({ ...lock, waiters: counted(lock.waiters) }))
        )
      ),
      locksFreshFor
    )

    let before: ReadonlyMap<string, Account> = new Map()

    const look = Effect.gen(function* () {
      const members = yield* membership.members
      const servedBy = new Map<string, Array<string>>()
      for (const member of members) {
        for (const { channel, serving } of member.queues) {
          const ids = servedBy.get(channel) ?? []
          servedBy.set(channel, serving ? [...ids, member.id] : ids)
        }
      }
      const names = [...servedBy.keys()].sort()

      const [all, depths, held] = yield* Effect.all(
        [
          accounts.of(members.map(({ id }) => id)),
          Effect.forEach(names, (channel) => known(queue.depth(jobOf(channel))), { concurrency: 10 }),
          locks
        ],
        { concurrency: "unbounded" }
      )
      const { count, rate } = totals(before, all)
      const ofMember = (id: string) => all.find(({ instance }) => instance === id)
      const keys = (what: (account: Account) => Iterable<string>) =>
        [...new Set(all.flatMap((one) => [...what(one)]))].sort()
      const state = {
        app,
        instance: id,
        at: yield* DateTime.now,
        actions: options.actions,
        members: members.map(({ queues: _, ...member }) => {
          const account = ofMember(member.id)
          return {
            ...member,
            ready: account === undefined ? null : account.health.ready,
            attempts:
              account === undefined
                ? 0
                : names.reduce((sum, name) => sum + rateOf(before, account, "consumed", name), 0),
            gaps: account?.gaps ?? 0,
            leasesLost: account?.leasesLost ?? 0,
            log: account?.log ?? []
          }
        }),
        health: keys(({ health }) => health.components.map(({ component }) => component)).map((component) => ({
          component,
          findings: all.flatMap(({ health, instance }) =>
            health.components.flatMap((one) =>
              one.component === component ? [{ instance, status: one.status, detail: one.detail ?? "" }] : []
            )
          )
        })),
        channels: names.map((channel, i) => ({
          channel,
          depth: depths[i]!,
          servedBy: servedBy.get(channel)!,
          sent: count("sent", channel),
          sentRate: rate("sent", channel),
          consumed: count("consumed", channel),
          consumedRate: rate("consumed", channel)
        })),
        alarms: all.flatMap(({ alarms }) => alarms),
        locks: held,
        caches: keys(({ hits, misses }) => [...Object.keys(hits), ...Object.keys(misses)]).map((name) => ({
          name,
          hits: count("hits", name),
          misses: count("misses", name),
          rate: rate("hits", name) + rate("misses", name)
        })),
        sync: keys(({ sync }) => sync.map(({ channel }) => channel)).map((channel) => ({
          channel,
          instances: all.flatMap((account) =>
            account.sync.flatMap((one) =>
              one.channel === channel
                ? [
                    {
                      instance: account.instance,
                      sent: one.sent,
                      behind: behind(all, account, channel),
                      resync: one.resync
                    }
                  ]
                : []
            )
          )
        }))
      } satisfies typeof State.Type
      before = new Map(all.map((account) => [account.instance, account]))
      return state
    })
    return yield* Effect.cachedWithTTL(look, freshFor)
  })
