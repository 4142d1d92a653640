/**
 * The stores of a simulated instance: the ones of its backend, made to fail when told to, heard through the process
 * that may stand still, and observed.
 *
 * What a store answers in the call is passed on in the call, so that the services take the ways they take in production.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import { CacheStore } from "../../services/CacheStore.ts"
import { EventQueueStore, type Worker } from "../../services/EventQueueStore.ts"
import { settled } from "../../services/internal/settled.ts"
import type * as Lock from "../../services/Lock.ts"
import { type Grant, LockStore } from "../../services/LockStore.ts"
import { PubSubTransport } from "../../services/PubSubTransport.ts"
import { Unavailable } from "../../services/Reason.ts"
import type { Operation, What } from "../Observation.ts"

/** What the cluster does to an instance's operations, and hears of them. */
export interface Probe {
  /** The clock that leases are counted on, in milliseconds. */
  readonly now: () => number
  /** Whether, and when, this operation is to fail. */
  readonly failing: (operation: Operation) => "before" | "after" | undefined
  readonly note: (what: What) => void
  readonly receive: (task: () => void) => void
  readonly send: (channel: string, from: string, deliver: () => void) => boolean
}

/** The last part of an address, as it was given. */
export const nameOf = (address: string): string => {
  const last = address.slice(address.indexOf(":", address.indexOf(":") + 1) + 1)
  return last.replace(/%25|%3A/g, (code) => (code === "%25" ? "%" : ":"))
}

/** Whether a channel is one that authors declare; the others are the services' own. */
const isTold = (address: string): boolean => /^[^:]*:(topic|sync):/.test(address)

const guarded =
  ({ failing, note }: Probe) =>
  <A, E>(
    operation: Operation,
    run: () => Effect.Effect<A, E>,
    noted?: (answer: A) => void,
    unanswered?: () => void
  ): Effect.Effect<A, E | Unavailable> => {
    const when = failing(operation)
    if (when !== undefined) note({ _tag: "Refused", operation, when })
    if (when === "before") return Exit.fail(refusal(operation, when))
    const answer = run()
    const known = settled(answer)
    if (known !== undefined) noted?.(known.value)
    const told =
      noted === undefined || known !== undefined
        ? answer
        : Effect.onExit(answer, (exit) =>
            Effect.sync(() => (Exit.isSuccess(exit) ? noted(exit.value) : unanswered?.()))
          )
    return when === undefined ? told : Effect.flatMap(told, () => Effect.fail(refusal(operation, when)))
  }

const refusal = (operation: Operation, when: "before" | "after") =>
  new Unavailable({ backend: "simulated", detail: `${operation} fails ${when} it takes effect` })

const cacheStore = (store: CacheStore["Service"], probe: Probe): CacheStore["Service"] => {
  const guard = guarded(probe)
  const stored = (space: string, keys: ReadonlyArray<string>) =>
    probe.note({ _tag: "Stored", cache: nameOf(space), keys })
  const removed = (space: string, keys: ReadonlyArray<string> | undefined) =>
    probe.note({ _tag: "Removed", cache: nameOf(space), keys })
  return CacheStore.of({
    system: store.system,
    ...(store.local !== undefined && { local: store.local }),
    get: (space, key) => guard("cache.get", () => store.get(space, key)),
    getMany: (space, keys) => guard("cache.getMany", () => store.getMany(space, keys)),
    set: (space, entries, ttl) => {
      const keys = entries.map(({ key }) => key)
      return guard(
        "cache.set",
        () => store.set(space, entries, ttl),
        () => stored(space, keys)
      )
    },
    del: (space, keys) =>
      guard(
        "cache.del",
        () => store.del(space, keys),
        () => removed(space, keys)
      ),
    reset: (space) =>
      guard(
        "cache.reset",
        () => store.reset(space),
        () => removed(space, undefined)
      ),
    keys: (space) => guard("cache.keys", () => store.keys(space)),
    ttl: (space, key) => guard("cache.ttl", () => store.ttl(space, key)),
    reserve: (space, key) => guard("cache.reserve", () => store.reserve(space, key)),
    fill: (space, key, reservation, payload, ttl) =>
      guard(
        "cache.fill",
        () => store.fill(space, key, reservation, payload, ttl),
        (filled) => filled && stored(space, [key])
      ),
    abandon: (space, key, reservation) => guard("cache.abandon", () => store.abandon(space, key, reservation))
  })
}

const lockStore = (store: LockStore["Service"], probe: Probe): LockStore["Service"] => {
  const guard = guarded(probe)
  const granted = ({ fence, key, since }: Grant, ttl: number) =>
    probe.note({ _tag: "Granted", key, fence, until: since + ttl })
  const { request } = store
  return LockStore.of({
    system: store.system,
    ...(store.list !== undefined && { list: store.list }),
    tryAcquire: (space, key, ttl) =>
      guard(
        "lock.acquire",
        () => store.tryAcquire(space, key, ttl),
        (grant) => grant !== undefined && granted(grant, ttl)
      ),
    acquire: (space, key, ttl) =>
      guard(
        "lock.acquire",
        () => store.acquire(space, key, ttl),
        (grant) => granted(grant, ttl)
      ),
    ...(request !== undefined && {
      request: (space, key, ttl, resume) => {
        const when = probe.failing("lock.acquire")
        if (when !== undefined) probe.note({ _tag: "Refused", operation: "lock.acquire", when })
        if (when === "before") {
          resume(Effect.fail(refusal("lock.acquire", when)))
          return () => {}
        }
        // A grant may wait for the process to go on; withdrawn meanwhile, it has been given back.
        let withdrawn = false
        const withdraw = request(space, key, ttl, (grant) =>
          probe.receive(() => {
            if (withdrawn) return
            const known = settled(grant)
            if (known !== undefined) granted(known.value, ttl)
            if (when !== undefined) return resume(Effect.fail(refusal("lock.acquire", when)))
            resume(known !== undefined ? grant : Effect.tap(grant, (grant) => Effect.sync(() => granted(grant, ttl))))
          })
        )
        return () => {
          withdrawn = true
          withdraw()
        }
      }
    }),
    renew: (grant, ttl) => {
      const { fence, key } = grant
      const sent = probe.now()
      return guard(
        "lock.renew",
        () => store.renew(grant, ttl),
        (accepted) => probe.note({ _tag: "Renewed", key, fence, until: sent + ttl, accepted })
      )
    },
    release: (grant) => {
      const { fence, key } = grant
      // Given back from when it is asked for, whatever becomes of the asking.
      probe.note({ _tag: "Released", key, fence })
      return guard("lock.release", () => store.release(grant))
    }
  })
}

const pubSubTransport = (
  transport: PubSubTransport["Service"],
  probe: Probe,
  to: string
): PubSubTransport["Service"] => {
  const guard = guarded(probe)
  let broadcasts = 0
  return PubSubTransport.of({
    system: transport.system,
    publish: (address, message) =>
      isTold(address)
        ? Effect.suspend(() => {
            const channel = nameOf(address)
            const number = broadcasts++
            return guard(
              "pubsub.publish",
              () => {
                // Before it is heard: that happens in the call.
                probe.note({ _tag: "Broadcast", channel, message: message.payload.tree, number })
                return transport.publish(address, message)
              },
              () => probe.note({ _tag: "Sent", channel, number })
            )
          })
        : guard("pubsub.publish", () => transport.publish(address, message)),
    subscribe: (address, onMessage, onGap) => {
      const channel = nameOf(address)
      const told = isTold(address)
      return Effect.suspend(() => {
        const when = probe.failing("pubsub.subscribe")
        if (when !== undefined) {
          probe.note({ _tag: "Refused", operation: "pubsub.subscribe", when })
          return Effect.fail(refusal("pubsub.subscribe", when))
        }
        return transport.subscribe(
          address,
          (message) => {
            const { from, payload, toSelf } = message
            if (from === to && !toSelf) return onMessage(message)
            const note = (_tag: "Delivered" | "Lost") => {
              if (told) probe.note({ _tag, channel, from, message: payload.tree })
            }
            const arrives = probe.send(channel, from, () =>
              probe.receive(() => {
                note("Delivered")
                onMessage(message)
              })
            )
            if (!arrives) note("Lost")
          },
          () =>
            probe.receive(() => {
              if (told) probe.note({ _tag: "Gap", channel })
              onGap()
            })
        )
      })
    }
  })
}

const eventQueueStore = (store: EventQueueStore["Service"], probe: Probe): EventQueueStore["Service"] => {
  const guard = guarded(probe)
  const worker = (address: string, worker: Worker): Worker => {
    const channel = nameOf(address)
    return {
      ready: worker.ready,
      take: (max) =>
        guard(
          "queue.take",
          () => worker.take(max),
          (taken) => {
            for (const { attempt, id } of taken) probe.note({ _tag: "Taken", channel, id, attempt })
          }
        ),
      pause: worker.pause,
      renew: (deliveries) => guard("queue.renew", () => worker.renew(deliveries)),
      settle: (settlements) =>
        guard(
          "queue.settle",
          () => worker.settle(settlements),
          (accepted) => {
            settlements.forEach(({ delivery: { attempt, id }, outcome }, i) => {
              const { _tag } = outcome
              probe.note({ _tag: "Settled", channel, id, attempt, outcome: _tag, accepted: accepted[i] === true })
            })
          }
        )
    }
  }
  return EventQueueStore.of({
    system: store.system,
    publish: (address, job) =>
      guard(
        "queue.publish",
        () => {
          probe.note({ _tag: "Publishing", channel: nameOf(address), id: job.id })
          return store.publish(address, job)
        },
        (accepted) => probe.note({ _tag: "Published", channel: nameOf(address), id: job.id, accepted }),
        () => probe.note({ _tag: "Published", channel: nameOf(address), id: job.id, accepted: undefined })
      ),
    worker: (address, options) =>
      Effect.map(
        Effect.suspend(() => {
          const when = probe.failing("queue.subscribe")
          return when === undefined ? store.worker(address, options) : Effect.fail(refusal("queue.subscribe", when))
        }),
        (made) => worker(address, made)
      ),
    depth: (address) => guard("queue.depth", () => store.depth(address)),
    deadLetters: (address, range) => guard("queue.deadLetters", () => store.deadLetters(address, range)),
    deadLetter: (address, id) => guard("queue.deadLetters", () => store.deadLetter(address, id)),
    redrive: (address, ids) =>
      guard(
        "queue.redrive",
        () => {
          probe.note({ _tag: "Redriving", channel: nameOf(address), ids })
          return store.redrive(address, ids)
        },
        () => probe.note({ _tag: "Redriven", channel: nameOf(address), ids }),
        () => probe.note({ _tag: "Redriven", channel: nameOf(address), ids })
      ),
    discard: (address, ids) =>
      guard("queue.discard", () => {
        probe.note({ _tag: "Discarded", channel: nameOf(address), ids })
        return store.discard(address, ids)
      })
  })
}

/** Work under a lock, from when it begins to when it has ended. */
export const lock = (lock: Lock.Lock["Service"], { note }: Probe): Lock.Lock["Service"] => ({
  ...lock,
  runExclusive: (key, work, options) =>
    lock.runExclusive(
      key,
      (lease) => {
        const { fence } = lease
        note({ _tag: "Entered", key, fence })
        const told = Effect.forkChild(
          Effect.map(lease.lost, () => note({ _tag: "LeaseLost", key, fence })),
          { startImmediately: true }
        )
        return Effect.onExit(Effect.andThen(told, typeof work === "function" ? work(lease) : work), () =>
          Effect.sync(() => note({ _tag: "Left", key, fence }))
        )
      },
      options
    )
})

/** The observed stores, on those of a backend. */
export const stores = (probe: Probe, id: string) =>
  Layer.mergeAll(
    Layer.effect(
      CacheStore,
      Effect.map(CacheStore, (store) => cacheStore(store, probe))
    ),
    Layer.effect(
      LockStore,
      Effect.map(LockStore, (store) => lockStore(store, probe))
    ),
    Layer.effect(
      EventQueueStore,
      Effect.map(EventQueueStore, (store) => eventQueueStore(store, probe))
    ),
    Layer.effect(
      PubSubTransport,
      Effect.map(PubSubTransport, (transport) => pubSubTransport(transport, probe, id))
    )
  )
