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
 * fence tells them apart.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Instance } from "../../services/Instance.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import type * as Timers from "../../services/internal/Timers.ts"
import { type Grant, LockStore } from "../../services/LockStore.ts"
import { Unavailable } from "../../services/Reason.ts"
import type { AmqpConnection } from "./AmqpConnection.ts"
import type { Entry } from "./log/Fold.ts"
import { authorOf, type Lock, LockFold, type Outcome } from "./log/LockFold.ts"
import type { LockRecord, LogRecord } from "./log/LogRecord.ts"
import * as Log from "./log/ReplicatedLog.ts"

/**
 * Options of {@link make}; times in milliseconds.
 *
 * @since 0.2.0
 */
export interface Options {
  /** How long an instance may be silent before those of it who wait are passed over. Default 10,000. */
  readonly silence?: number | undefined
  /** How long to ask for a snapshot before locks begin anew. Longer than the longest ttl. Default 60,000. */
  readonly recovery?: number | undefined
  /** After which time a snapshot is due, if not after an eighth of what the log retains. Default an hour. */
  readonly snapshotMillis?: number | undefined
}

/**
 * When a lease has ended for those who do not hold it. A little later than for its holder, whose timers
 * may be late and whose clock may be slower: the work has stopped before the next holder comes.
 */
const leaseOf = (ttl: number): number => ttl * 1.001 + 10
/** Who stands first in line says that a lease has ended, the others when nobody has, that much later. */
const stagger = 50
/** After which it is said again. */
const again = 1_000
/** A lease that nobody waits for is ended that much later. */
const unhurried = 5_000

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
  options: Options = {}
): Effect.Effect<LockStore["Service"], never, Log.ReplicatedLog | Scope.Scope> =>
  Effect.gen(function* () {
    const log = yield* Log.ReplicatedLog
    const { author, timers, timeout } = log
    const { silence = 10_000, recovery = 60_000 } = options
    const snapshotBytes = log.retention.maxBytes / 8
    const snapshotMillis = Math.min(options.snapshotMillis ?? 3_600_000, log.retention.maxAge / 8)

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
      const id = `${author}.${(count++).toString(36)}`
      const address = `${space.length}:${space}${key}`
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
        const over = owner !== undefined && timers.now() >= dueOf(owner) ? owner.touched : undefined
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
        if (accepted) return take(request, fold.locks.get(request.address)!.owner.fence)
        if (wait) return stand(request)
        request.state = "over"
        leave(request)
        answer(request, Exit.succeed(undefined))
      })
    }

    /** The log says that the lock is this one's. */
    const take = (request: Request, fence: number) => {
      request.fence = fence
      request.since = log.provenAt()
      if (timers.now() - request.since <= request.ttl / 4) return hold(request)
      // Granted some time ago, as far as can be told: a renewal starts the ttl again, and tells when.
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
      watch.timer = timers.at(Math.max(dueOf(lock.owner) + late, timers.now()), () => {
        if (!log.isLive()) return
        expire(address)
        watch.timer = timers.at(timers.now() + again, () => arm(address, watch))
      })
    }

    const expire = (address: string) => {
      const touched = fold.locks.get(address)?.owner.touched
      if (touched !== undefined) log.send(() => ({ kind: "expire", key: address, touched }))
    }

    // --- the log ---

    let wasKnown = false
    let snapshotDue: number | undefined
    let bytes = 0
    let snapshotAt = timers.now()
    let asked: { readonly offset: number; readonly at: number } | undefined
    const awaitingKnown = new Set<() => void>()

    const apply = (entry: Entry): Outcome | undefined => {
      bytes += entry.size
      const { record } = entry
      const outcome = fold.apply(entry, record)
      if (record.kind === "snapshot" || record.kind === "genesis") {
        bytes = 0
        snapshotAt = entry.now
        snapshotDue = undefined
      } else if (record.kind === "ask" && entry.author !== author) snapshotDue ??= entry.now
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
        asked = undefined
        log.send(
          () => ({ kind: "ask" }),
          (exit) => {
            if (Exit.isSuccess(exit)) asked = { offset: exit.value.offset, at: timers.now() }
          }
        )
        return
      }
      for (const resume of [...awaitingKnown]) resume()
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
        if (lock?.owner.id === request.id) take(request, lock.owner.fence)
        else if (!lock?.waiters.has(request.id)) ask(request, true)
      }
    }

    /** How many instances there are before this one: what all would do, they do in turn. */
    const rank = (): number => {
      let before = 0
      for (const other of fold.seen.keys()) if (other < author) before++
      return before
    }

    const beat = (now: number) => {
      if (!fold.known) {
        const since = asked
        if (since !== undefined && now - since.at > recovery) {
          asked = undefined
          log.send(() => ({ kind: "genesis", asked: since.offset }))
        }
        return
      }
      const turn = rank() * again
      if (bytes > snapshotBytes || now - snapshotAt > snapshotMillis) snapshotDue ??= now
      if (snapshotDue !== undefined && now >= snapshotDue + turn) log.send(() => fold.snapshot())
      for (const [address, { owner }] of fold.locks) {
        if (now > dueOf(owner) + unhurried + turn) expire(address)
      }
      for (const [other, { at, offset }] of fold.seen) {
        const gone = () => void log.send(() => ({ kind: "gone", author: other, seen: offset }))
        if (other === author) continue
        if (now - at > silence + turn) gone()
        else if (now - at > 1.5 * log.beat) log.probe(other, gone)
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
          const error = new Unavailable({ backend: "rabbitmq", detail: `no connection for ${timeout} ms` })
          for (const request of [...requests.values()]) if (request.state === "waiting") fail(request, error)
        })
      },
      beat,
      close: () => ({ kind: "bye" })
    })

    /** Waits until it is known who holds what. */
    const known = Effect.suspend(() => {
      if (fold.known) return Exit.void
      return Effect.callback<void, Unavailable>((resume) => {
        const done = () => {
          awaitingKnown.delete(done)
          timers.cancel(timer)
          resume(Exit.void)
        }
        const timer = timers.at(timers.now() + timeout, () => {
          awaitingKnown.delete(done)
          resume(
            Exit.fail(new Unavailable({ backend: "rabbitmq", detail: `the locks are not known after ${timeout} ms` }))
          )
        })
        awaitingKnown.add(done)
        return Effect.sync(() => {
          awaitingKnown.delete(done)
          timers.cancel(timer)
        })
      })
    })

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
        const error = new Unavailable({ backend: "rabbitmq", detail: "the lock store is closed" })
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
      release: (grant) => release(grant as Request)
    })
  })

interface Watch {
  /** The requests of this instance. */
  readonly waiting: Set<string>
  timer: Timers.Timer | undefined
}

const dueOf = ({ touchedAt, ttl }: Lock["owner"]): number => touchedAt + leaseOf(ttl)

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
export const layerOnLog = (options?: Options): Layer.Layer<LockStore, never, Log.ReplicatedLog> =>
  Layer.effect(LockStore, make(options))

/**
 * Provides `LockStore`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<LockStore, never, AmqpConnection | Instance> = layerOnLog().pipe(
  Layer.provide(Log.layer)
)
