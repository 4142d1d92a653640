/**
 * One process of the soak: fibers that take locks in every way there is, and tell
 * the witness. It ends with its input.
 * `node lock-worker.ts <url of the locks> <redis url of the witness> <fibers> <ttl, ms> <key>...`
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import { Redis } from "ioredis"
import { Instance, Lock, LockStore } from "../../../src/index.ts"
import { lockStore } from "../lockStore.ts"
import { tell } from "./lock-witness.ts"

const [url, witnessUrl, fibers, ttlMillis, ...keys] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  ...Array<string>
]
const ttl = Number(ttlMillis)
const witness = new Redis(witnessUrl)
witness.on("error", () => undefined)

const monotonic = () => Number(process.hrtime.bigint()) / 1e6
const below = (n: number) => Math.floor(Math.random() * n)
const oneIn = (n: number) => below(n) === 0

/** Until when each grant is good, on the monotonic clock: as the contract of the store has it. */
const good = new Map<string, number>()
const nameOf = (grant: { readonly key: string; readonly fence: number }) => `${grant.fence} ${grant.key}`

const Noted = Layer.effect(
  LockStore.LockStore,
  Effect.map(LockStore.LockStore, ({ request: _, ...store }) => {
    const note = (grant: LockStore.Grant, from: number, millis: number) => good.set(nameOf(grant), from + millis)
    return {
      ...store,
      tryAcquire: (space, key, millis) =>
        Effect.tap(store.tryAcquire(space, key, millis), (grant) =>
          Effect.sync(() => grant && note(grant, grant.since, millis))
        ),
      acquire: (space, key, millis) =>
        Effect.tap(store.acquire(space, key, millis), (grant) => Effect.sync(() => note(grant, grant.since, millis))),
      renew: (grant, millis) =>
        Effect.suspend(() => {
          const sent = monotonic()
          return Effect.tap(store.renew(grant, millis), (renewed) =>
            Effect.sync(() => renewed && note(grant, sent, millis))
          )
        }),
      release: (grant) => {
        good.delete(nameOf(grant))
        return store.release(grant)
      }
    }
  })
)

const Locks = Lock.layer.pipe(
  Layer.provide(Noted),
  Layer.provide(lockStore(url, { timeout: "2 seconds", lazy: true })),
  Layer.provide(Instance.layer({ app: "soak" }))
)

const ask = (op: "enter" | "write" | "leave", lease: Lock.Lease, waited = 0) =>
  Effect.promise(() => {
    // The wall clock first: a pause between the two must not make the lease look longer.
    const now = Date.now()
    return tell(witness, op, lease.key, lease.fence, now + (good.get(nameOf(lease)) ?? 0) - monotonic(), waited)
  })

/** Enters, writes now and then, leaves; goes when refused. Some hold for longer than their ttl. */
const work = (asked: number) => (lease: Lock.Lease) =>
  Effect.gen(function* () {
    if (!(yield* ask("enter", lease, monotonic() - asked))) return
    const end = monotonic() + (oneIn(100) ? ttl * 1.5 : below(8))
    while (monotonic() < end) {
      yield* Effect.sleep(1 + below(5))
      if (!(yield* ask("write", lease))) return
    }
  }).pipe(Effect.ensuring(ask("leave", lease)))

const round = Effect.suspend(() => {
  const key = keys[below(keys.length)]!
  const options: Lock.LeaseOptions = { ttl, renew: !oneIn(20) }
  const holdIt = work(monotonic())
  switch (below(8)) {
    case 0:
      return Effect.scoped(Effect.flatMap(Lock.acquire(key, options), holdIt))
    case 1:
      return Effect.scoped(
        Effect.flatMap(
          Lock.tryAcquire(key, { ...options, timeout: below(200) }),
          Option.match({ onNone: () => Effect.void, onSome: holdIt })
        )
      )
    case 2:
      // Interrupted while it waits, in the moment of the grant, or at work.
      return Effect.timeoutOption(Lock.runExclusive(key, holdIt, options), below(200))
    default:
      return Lock.runExclusive(key, holdIt, options)
  }
})

const count = (what: string) => Effect.promise(() => witness.hincrby("soak:counts", what, 1))

const fiber = round.pipe(
  Effect.catch((error) => Effect.andThen(count(error.reason._tag), Effect.sleep(20))),
  Effect.forever
)

const end = Effect.callback<void>((resume) => {
  process.stdin.once("end", () => resume(Effect.void)).resume()
})

await Effect.all(
  Array.from({ length: Number(fibers) }, () => fiber),
  { concurrency: "unbounded" }
).pipe(Effect.raceFirst(end), Effect.provide(Layer.provide(Locks, Logger.layer([]))), Effect.runPromise)
witness.disconnect()
