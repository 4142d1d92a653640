/** The simulation is tested too: whatever is broken is caught, within a bounded number of steps. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import {
  Cache,
  CacheStore,
  EventQueueStore,
  Lock,
  LockStore,
  Plugin,
  PubSubTransport,
  SyncMessage
} from "../../src/index.ts"
import { Invariant, Simulation } from "../../src/testing/index.ts"
import { broadcasts, caches, changed, Database, locks, queues, syncs } from "./primitives.ts"

/** How many steps each broken thing may take to be found. */
const bound = 300

const caught = (
  what: string,
  simulation: Effect.Effect<Simulation.Report, Simulation.SimulationFailed>,
  invariant: string
) =>
  it.effect(`${what}: "${invariant}"`, () =>
    Effect.gen(function* () {
      const failed = yield* Effect.flip(simulation)
      assert.strictEqual(failed.invariant, invariant, failed.message)
      assert.isAtMost(failed.steps, bound)
      assert.isAtMost(failed.schedule.split("\n").filter((line) => line !== "").length, failed.steps)
    })
  )

const seed = 1

describe("a broken lock is caught", () => {
  const run = (change: (store: LockStore.LockStore["Service"]) => LockStore.LockStore["Service"]) =>
    Simulation.run({ ...locks, seed, steps: bound, backend: changed(LockStore.LockStore, change) })

  let fence = 1_000_000
  caught(
    "that gives what is taken",
    run((store) => {
      // Whoever would have to wait is told that it is its turn.
      const stolen = new Set<LockStore.Grant>()
      const steal: NonNullable<LockStore.LockStore["Service"]["request"]> = (_, key, __, resume) => {
        const grant = { key, fence: fence++, since: 1e9 }
        stolen.add(grant)
        resume(Exit.succeed(grant))
        return () => {}
      }
      const isStolen = (grant: LockStore.Grant) => stolen.has(grant)
      return {
        ...store,
        request: steal,
        acquire: (space, key, ttl) => Effect.callback((resume) => void steal(space, key, ttl, resume)),
        renew: (grant, ttl) => (isStolen(grant) ? Exit.succeed(true) : store.renew(grant, ttl)),
        release: (grant) => (isStolen(grant) ? Exit.void : store.release(grant))
      }
    }),
    "one holder per lock"
  )
  caught(
    "whose leases end too early for those who wait",
    run((store) => ({
      ...store,
      tryAcquire: (space, key, ttl) => store.tryAcquire(space, key, ttl / 4),
      acquire: (space, key, ttl) => store.acquire(space, key, ttl / 4),
      request: (space, key, ttl, resume) => store.request!(space, key, ttl / 4, resume)
    })),
    "one holder per lock"
  )
  caught(
    "whose fences count anew in every instance",
    run((store) => {
      let fence = 0
      const numbered = <A extends LockStore.Grant | undefined>(grant: A): A =>
        grant === undefined ? grant : Object.assign(grant, { fence: ++fence })
      return {
        ...store,
        tryAcquire: (space, key, ttl) => Effect.map(store.tryAcquire(space, key, ttl), numbered),
        acquire: (space, key, ttl) => Effect.map(store.acquire(space, key, ttl), numbered),
        request: (space, key, ttl, resume) =>
          store.request!(space, key, ttl, (grant) => resume(Effect.map(grant, numbered)))
      }
    }),
    "fences increase"
  )
})

describe("a broken cache is caught", () => {
  const run = (change: (store: CacheStore.CacheStore["Service"]) => CacheStore.CacheStore["Service"]) =>
    Simulation.run({ ...caches, seed, steps: bound, backend: changed(CacheStore.CacheStore, change) })

  caught(
    "whose loads overwrite what came after them",
    run((store) => ({
      ...store,
      fill: (space, key, _, payload, ttl) => Effect.as(store.set(space, [{ key, payload }], ttl), true)
    })),
    "no cached value is older than what was told everywhere"
  )
  caught(
    "that removes one time out of two",
    run((store) => {
      let calls = 0
      return { ...store, del: (space, keys) => (calls++ % 2 === 0 ? store.del(space, keys) : Effect.succeed(0)) }
    }),
    "no cached value is older than what was told everywhere"
  )
})

describe("a broken queue is caught", () => {
  const run = (
    change: (store: EventQueueStore.EventQueueStore["Service"]) => EventQueueStore.EventQueueStore["Service"]
  ) => Simulation.run({ ...queues, seed, steps: bound, backend: changed(EventQueueStore.EventQueueStore, change) })

  caught(
    "that answers before it has the job",
    run((store) => ({
      ...store,
      publish: (channel, job) => (job.id.endsWith("0") ? Exit.succeed(true) : store.publish(channel, job))
    })),
    "no job is lost"
  )
  caught(
    "that gives out again what was done",
    run((store) => ({
      ...store,
      worker: (channel, options) =>
        Effect.map(store.worker(channel, options), (worker) => ({
          ...worker,
          settle: (settlements) =>
            Effect.map(
              worker.settle(
                settlements.map(({ delivery, outcome }) => ({
                  delivery,
                  outcome: outcome._tag === "ack" ? ({ _tag: "release", delay: 0 } as const) : outcome
                }))
              ),
              (accepted) => accepted
            )
        }))
    })),
    "no job is done twice"
  )
})

describe("a broken broadcast is caught", () => {
  const run = (
    change: (transport: PubSubTransport.PubSubTransport["Service"]) => PubSubTransport.PubSubTransport["Service"]
  ) => Simulation.run({ ...broadcasts, seed, steps: bound, backend: changed(PubSubTransport.PubSubTransport, change) })

  caught(
    "that sends again when a reconnect has made it unsure",
    run((transport) => ({
      ...transport,
      publish: (channel, message) =>
        Effect.andThen(transport.publish(channel, message), Effect.delay(transport.publish(channel, message), 1))
    })),
    "messages arrive in order, at most once"
  )
})

describe("a broken plugin is caught", () => {
  const increment = (
    protect: <A, E, R>(work: Effect.Effect<A, E, R>) => Effect.Effect<A, E | Lock.LockError, R | Lock.Lock>
  ) =>
    Effect.gen(function* () {
      const { counters } = yield* Database
      yield* protect(
        Effect.gen(function* () {
          const before = counters.get("orders") ?? 0
          yield* Effect.sleep("50 millis")
          counters.set("orders", before + 1)
          counters.set("increments", (counters.get("increments") ?? 0) + 1)
        })
      )
    })
  const right = Invariant.always("every increment counts", () =>
    Effect.gen(function* () {
      const { counters } = yield* Database
      assert.strictEqual(counters.get("orders"), counters.get("increments"))
    })
  )
  const counting = {
    plugins: [],
    shared: Database.layer,
    invariants: [right],
    seed,
    steps: bound,
    pace: "200 millis"
  } as const

  it.effect("and the same plugin is not when it takes its lock", () =>
    Simulation.run({
      ...counting,
      faults: ["partition", "refusal", "delay"],
      workload: { increment: increment((work) => Lock.runExclusive("orders", work)) }
    })
  )
  caught(
    "that takes no lock",
    Simulation.run({ ...counting, workload: { increment: increment((work) => work) } }),
    right.name
  )

  caught(
    "that does not load anew after a gap",
    Simulation.run({
      ...syncs,
      plugins: [
        Plugin.make("mirrored", {
          sync: {
            message: SyncMessage.make("mirror", Schema.Struct({ key: Schema.String })),
            handle: () => Effect.void,
            resync: Effect.void
          }
        })
      ],
      faults: ["freeze", "partition", "delay"],
      ...{ seed, steps: bound }
    }),
    "every instance has what the database has"
  )
  const Names = Cache.make("names", Schema.Int)
  caught(
    "that forgets to remove what it has changed from the cache",
    Simulation.run({
      ...{ plugins: [], shared: Database.layer, seed, steps: bound },
      workload: {
        change: Effect.map(Database, ({ counters }) => counters.set("a", (counters.get("a") ?? 0) + 1)),
        read: Effect.gen(function* () {
          const { counters } = yield* Database
          const names = yield* Names
          yield* names.wrap(
            "a",
            Effect.sync(() => counters.get("a") ?? 0)
          )
        })
      },
      invariants: [
        Invariant.eventually("the cache has what the database has", (cluster) =>
          Effect.gen(function* () {
            const { counters } = yield* Database
            for (const { value } of yield* cluster.entries("names")) assert.strictEqual(value, counters.get("a"))
          })
        )
      ]
    }),
    "the cache has what the database has"
  )
  caught(
    "that waits forever",
    Simulation.run({ plugins: [], workload: { wait: Effect.never }, invariants: [], seed, steps: 3 }),
    "every operation ends"
  )
  caught(
    "that does not start",
    Simulation.run({
      ...{
        plugins: [Plugin.make("bad", { load: Effect.fail("no") })],
        workload: { nothing: Effect.void },
        invariants: []
      },
      seed
    }),
    "the cluster starts"
  )
})
