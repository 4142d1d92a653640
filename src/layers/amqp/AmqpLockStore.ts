/**
 * Locks on RabbitMQ: a fold of the app's replicated log (`log/LockFold.ts`), which tells
 * every instance at once who holds what and who waits in which order.
 *
 * - **Direct grant.** The record that releases a lock is the grant of the first who waits:
 *   its instance reads it and goes on. Nobody polls, nobody overtakes.
 * - **Leases** end when another instance has counted the ttl and a little more from when it
 *   read the grant or its last renewal, and has said so in the log; for their holder they end earlier, as
 *   it counts from before. A renewal that comes after that record is refused, one
 *   that comes before it makes it void.
 * - **Waiters that died are passed over** when their instance has not been heard of for a moment and its connection is
 *   gone, two to three seconds after; one that is frozen, or cut off without a word, when nothing was heard of it for
 *   10 seconds. Until then one may be granted the lock and keep it for its ttl. An instance that was cut off that
 *   long waits again from the end of the line.
 * - **Fences** are an epoch plus the offset of the grant; they increase over a stream that is made
 *   anew, as long as clocks are right.
 * - A lock that is not used leaves nothing.
 *
 * When RabbitMQ itself forgets (the stream is deleted, or loses its end with the disk of its leader), a
 * second holder is possible until the first one's next renewal is refused; only its
 * fence tells them apart. So it is when the stream is written over while nobody who knows the locks is connected: whoever is
 * there then waits for a minute (`recovery`) before locks begin anew, and a holder that is cut off may have a longer ttl.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { Instance } from "../../services/Instance.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import type * as Timers from "../../services/internal/Timers.ts"
import { type Grant, type HeldLock, LockStore } from "../../services/LockStore.ts"
import type { Unavailable } from "../../services/Reason.ts"
import type { AmqpConnection } from "./AmqpConnection.ts"
import { unavailable } from "./AmqpLink.ts"
import type { Entry } from "./log/Fold.ts"
import { authorOf, instanceOf, LockFold, type Outcome } from "./log/LockFold.ts"
import * as LockUpkeep from "./log/LockUpkeep.ts"
import type { LockRecord, LogRecord } from "./log/LogRecord.ts"
import * as Log from "./log/ReplicatedLog.ts"
import * as Waiters from "./log/Waiters.ts"

export type { Options } from "./log/LockUpkeep.ts"

/** Who stands first in line says that a lease has ended, the others when nobody has, that much later. */
const stagger = 50
/** A request for a lock, and the grant it becomes. */
interface Request extends Grant {
  readonly id: string
  readonly ttl: number
  /** What the log calls the lock. */
  readonly address: string
  fence: number
  since: number
  state: "asking" | "waiting" | "confirming" | "held" | "over"
  resume: ((granted: Exit.Exit<Grant | undefined, Unavailable>) => void) | undefined
  /** Takes the last record back that was not sent yet. */
  takeBack: () => boolean
}

/**
 * Makes the store of one instance.
 *
 * @since 0.2.0
 */
export const make = (
  options: LockUpkeep.Options = {}
): Effect.Effect<LockStore["Service"], never, Log.ReplicatedLog | Instance | Scope.Scope> =>
  Effect.gen(function* () {
    const log = yield* Log.ReplicatedLog
    const { id: instance } = yield* Instance
    const { author, timers, timeout } = log
    const fold = new LockFold()
    let count = 0
    /** All that are not over. */
    const requests = new Map<string, Request>()
    /** Given up, and not yet so in the log. */
    const unreleased = new Map<string, string>()
    /** Locks that somebody here waits for, with the timer of their owner's lease. */
    const watched = new Map<string, Watch>()

    // --- asking and being granted ---

    const newRequest = (
      space: string,
      key: string,
      ttl: number,
      resume: (granted: Exit.Exit<Grant | undefined, Unavailable>) => void
    ): Request => {
      const id = `${author}.${(count++).toString(36)}.${instance}`
      const address = addressOf(space, key)
      const request: Request = {
        id,
        key,
        ttl,
        address,
        fence: 0,
        since: 0,
        state: "asking",
        resume,
        takeBack: () => false
      }
      requests.set(id, request)
      return request
    }

    const unwatch = ({ address, id }: Request) => {
      const watch = watched.get(address)
      if (watch === undefined) return
      watch.waiting.delete(id)
      if (watch.waiting.size > 0) return
      if (watch.timer !== undefined) timers.cancel(watch.timer)
      watched.delete(address)
    }

    const leave = (request: Request) => {
      requests.delete(request.id)
      unwatch(request)
    }

    const answer = (request: Request, exit: Exit.Exit<Grant | undefined, Unavailable>) => {
      const { resume } = request
      request.resume = undefined
      resume?.(exit)
    }

    /** Ends a request that is of no use any more, in the log as well. */
    const drop = (request: Request) => {
      if (request.state === "over") return
      request.state = "over"
      leave(request)
      if (!request.takeBack()) sendRelease(request.id, request.address)
    }

    const fail = (request: Request, error: Unavailable) => {
      drop(request)
      answer(request, Exit.fail(error))
    }

    const sendRelease = (id: string, address: string) => {
      unreleased.set(id, address)
      if (log.isLive()) log.send(releaseOf(id, address), (exit) => Exit.isSuccess(exit) && unreleased.delete(id))
    }

    const ask = (request: Request, wait: boolean) => {
      const record = (): LockRecord => {
        const owner = fold.locks.get(request.address)?.owner
        const over = owner !== undefined && timers.now() >= LockUpkeep.dueOf(owner) ? owner.touched : undefined
        return { kind: "request", key: request.address, id: request.id, ttl: request.ttl, wait, over }
      }
      request.takeBack = log.send(record, (exit) => {
        request.takeBack = () => false
        if (request.state !== "asking" && request.state !== "waiting") return
        if (Exit.isFailure(exit)) {
          drop(request)
          return answer(request, Exit.failCause(exit.cause))
        }
        const { accepted } = exit.value.answer as Outcome
        if (accepted) {
          const { owner } = fold.locks.get(request.address)!
          return owner.touched === exit.value.offset ? take(request, owner.fence) : confirm(request, owner.fence)
        }
        if (wait) return stand(request)
        request.state = "over"
        leave(request)
        answer(request, Exit.succeed(undefined))
      })
    }

    /** The record that was just read says that the lock is this one's. */
    const take = (request: Request, fence: number) => {
      request.fence = fence
      request.since = log.provenAt()
      if (timers.now() - request.since <= request.ttl / 4) hold(request)
      else confirm(request, fence)
    }

    /** Granted some time ago, for all that is known: a renewal starts the ttl again, and tells when. */
    const confirm = (request: Request, fence: number) => {
      request.fence = fence
      request.state = "confirming"
      log.send(renewOf(request, request.ttl), (exit) => {
        if (request.state !== "confirming") return
        if (Exit.isFailure(exit)) {
          drop(request)
          return answer(request, Exit.failCause(exit.cause))
        }
        request.since = exit.value.sent
        if ((exit.value.answer as Outcome).accepted) return hold(request)
        // Too late: from the end of the line.
        request.state = "asking"
        ask(request, true)
      })
    }

    const hold = (request: Request) => {
      request.state = "held"
      unwatch(request)
      answer(request, Exit.succeed(request))
    }

    const stand = (request: Request) => {
      request.state = "waiting"
      const { address } = request
      const watch = getOrMake(watched, address, (): Watch => ({ waiting: new Set(), timer: undefined }))
      watch.waiting.add(request.id)
      arm(address, watch)
    }

    // --- leases of others that end ---

    /** Sets the timer of a lock that somebody here waits for to when its lease ends. */
    const arm = (address: string, watch: Watch) => {
      if (watch.timer !== undefined) timers.cancel(watch.timer)
      const lock = fold.locks.get(address)
      if (lock === undefined) return
      const first = lock.waiters.keys().next().value
      const late = first !== undefined && watch.waiting.has(first) ? 0 : stagger
      watch.timer = timers.at(Math.max(LockUpkeep.dueOf(lock.owner) + late, timers.now()), () => {
        if (!log.isLive()) return
        upkeep.expire(address)
        watch.timer = timers.at(timers.now() + LockUpkeep.again, () => arm(address, watch))
      })
    }

    // --- the log ---

    let wasKnown = false
    const awaitingKnown = Waiters.make(timers, timeout, () =>
      unavailable(`the locks are not known after ${timeout} ms`)
    )
    const upkeep = LockUpkeep.make(log, fold, options)

    const apply = (entry: Entry): Outcome | undefined => {
      const { record } = entry
      const outcome = fold.apply(entry, record)
      upkeep.noted(entry)
      // What happened while away is seen to at once, when that is over.
      if (log.isLive()) react(record, outcome)
      return isAnswered(record) ? outcome : undefined
    }

    const react = (record: LogRecord, { accepted, granted }: Outcome) => {
      if (fold.known !== wasKnown || record.kind === "genesis") return reconcile()
      if (record.kind === "gone" && record.author === author && accepted) return askAgain()
      if (!isAnswered(record)) return
      if (granted !== undefined && authorOf(granted.id) === author) onGranted(granted.id, granted.key, granted.fence)
      const watch = watched.get(record.key)
      if (watch !== undefined) arm(record.key, watch)
    }

    const onGranted = (id: string, address: string, fence: number) => {
      const request = requests.get(id)
      if (request === undefined) return unreleased.has(id) ? undefined : sendRelease(id, address)
      if (request.state === "asking" || request.state === "waiting") take(request, fence)
    }

    /** Compares what is wanted here with what the log says, after a time in which nothing was done about it. */
    const reconcile = () => {
      wasKnown = fold.known
      if (!fold.known) {
        upkeep.ask()
        return
      }
      awaitingKnown.end(Exit.void)
      for (const [address, { owner, waiters }] of fold.locks) {
        for (const id of [owner.id, ...waiters.keys()]) {
          if (authorOf(id) === author && !requests.has(id)) unreleased.set(id, address)
        }
      }
      for (const [id, address] of unreleased) sendRelease(id, address)
      askAgain()
      for (const [address, watch] of watched) arm(address, watch)
    }

    const askAgain = () => {
      for (const request of [...requests.values()]) {
        if (request.state !== "waiting") continue
        const lock = fold.locks.get(request.address)
        if (lock?.owner.id === request.id) confirm(request, lock.owner.fence)
        else if (!lock?.waiters.has(request.id)) ask(request, true)
      }
    }

    let giveUp: Timers.Timer | undefined
    yield* log.attach({
      begin: (first) => {
        fold.begin(first)
        wasKnown = false
      },
      apply,
      live: () => {
        if (giveUp !== undefined) timers.cancel(giveUp)
        reconcile()
      },
      away: () => {
        giveUp = timers.at(timers.now() + timeout, () => {
          const error = unavailable(`no connection for ${timeout} ms`)
          for (const request of [...requests.values()]) if (request.state === "waiting") fail(request, error)
        })
      },
      beat: upkeep.beat,
      close: () => ({ kind: "bye" })
    })

    /** Waits until it is known who holds what. */
    const known = Effect.suspend(() => (fold.known ? Exit.void : awaitingKnown.wait))

    const request = (
      space: string,
      key: string,
      ttl: number,
      wait: boolean
    ): Effect.Effect<Grant | undefined, Unavailable> =>
      Effect.suspend(() => {
        let asking: Request | undefined
        const answered = Effect.callback<Grant | undefined, Unavailable>((resume) => {
          asking = newRequest(space, key, ttl, resume)
          ask(asking, wait)
        })
        return Effect.onInterrupt(fold.known ? answered : Effect.andThen(known, answered), () =>
          asking === undefined ? Effect.void : Effect.ignore(release(asking))
        )
      })

    /** Ends a request, whether it waits or was granted. */
    const release = (request: Request): Effect.Effect<void, Unavailable> =>
      Effect.suspend(() => {
        const { address, id } = request
        request.state = "over"
        request.resume = undefined
        leave(request)
        if (request.takeBack()) return Effect.void
        unreleased.set(id, address)
        return Effect.map(log.append(releaseOf(id, address)), () => void unreleased.delete(id))
      })

    yield* Effect.addFinalizer(() =>
      Effect.suspend(() => {
        const error = unavailable("the lock store is closed")
        const waiting = [...requests.values()].filter(({ state }) => state !== "held")
        return Effect.forEach(
          waiting,
          (request) => {
            answer(request, Exit.fail(error))
            return log.isLive() ? Effect.ignore(release(request)) : Effect.void
          },
          { concurrency: "unbounded", discard: true }
        )
      })
    )

    return LockStore.of({
      system: "rabbitmq",
      tryAcquire: (space, key, ttl) => request(space, key, ttl, false),
      acquire: (space, key, ttl) => Effect.map(request(space, key, ttl, true), (grant) => grant!),
      renew: (grant, ttl) =>
        Effect.map(
          log.append(renewOf(grant as Request, ttl)),
          ({ answer }) => (grant as Request).state === "held" && (answer as Outcome).accepted
        ),
      release: (grant) => release(grant as Request),
      list: (space) =>
        Effect.flatMap(log.sync, () => {
          if (!fold.known) {
            return Effect.fail(unavailable("the locks are not known yet"))
          }
          const before = addressOf(space, "")
          const now = timers.now()
          return Effect.succeed(
            [...fold.locks].flatMap(
              ([address, { owner, waiters }]): ReadonlyArray<HeldLock> =>
                address.startsWith(before) && LockUpkeep.dueOf(owner) > now
                  ? [
                      {
                        key: address.slice(before.length),
                        fence: owner.fence,
                        ttl: LockUpkeep.dueOf(owner) - now,
                        holder: instanceOf(owner.id),
                        waiters: [...waiters.keys()].map(instanceOf)
                      }
                    ]
                  : []
            )
          )
        })
    })
  })

interface Watch {
  /** The requests of this instance. */
  readonly waiting: Set<string>
  timer: Timers.Timer | undefined
}

const addressOf = (space: string, key: string): string => `${space.length}:${space}${key}`

type Answered = LockRecord & { readonly kind: "request" | "renew" | "release" | "expire" }

/** The records of one lock. */
const isAnswered = (record: LogRecord): record is Answered =>
  record.kind === "request" || record.kind === "renew" || record.kind === "release" || record.kind === "expire"

const releaseOf = (id: string, key: string) => (): LockRecord => ({ kind: "release", key, id })
const renewOf =
  ({ address, id }: Request, ttl: number) =>
  (): LockRecord => ({ kind: "renew", key: address, id, ttl })

/**
 * Provides `LockStore` on a log; with other stores on the same one, what they see of each other is in order.
 *
 * @since 0.2.0
 */
export const layerOnLog = (options?: LockUpkeep.Options): Layer.Layer<LockStore, never, Log.ReplicatedLog | Instance> =>
  Layer.effect(LockStore, make(options))

/**
 * Provides `LockStore`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<LockStore, never, AmqpConnection | Instance> = layerOnLog().pipe(
  Layer.provide(Log.layer)
)
