/**
 * One log for all instances of an app; each folds it into its own memory.
 *
 * - **An append is done when it is read again.** The answer is what the folds say at its place
 *   in the order, the same on every instance. Whoever has the answer has applied
 *   everything before it.
 * - **Ready means caught up.** A session begins with a mark of its own; when that is read,
 *   so is all that was appended before. What is asked for until then waits, and fails with
 *   `Unavailable` when the `timeout` has passed.
 * - **Fresh means lately proved.** Every own record proves, when it is read, that
 *   the memory is not older than the moment it was sent; there is a mark each `beat`. When the last proof is older than `staleness` nothing is answered from
 *   memory: the tail has stalled, and the session is opened again.
 * - **The same log, or from the start.** A session goes on from the last record
 *   that was read, and reads that one again. If it is not the same, byte for
 *   byte, or does not come (the stream was made anew, lost its end, or has forgotten that far),
 *   everything is forgotten and read again from the first record. So a session ends that misses records: if the last
 *   one that it read is gone, retention has overtaken it, which RabbitMQ does not tell; if not, there is nothing between.
 * - **In the order in which they were sent.** A connection that was given up may still deliver what the network had held up.
 *   What an author sent before something of its own that was read already is passed over, by everybody: nobody counts on
 *   it any more, and it would undo what has been done since.
 * - **Epoch.** A fence is an epoch plus an offset. Every mark lifts the epoch to that of its author, and
 *   to the author's clock in microseconds less the offset: so fences grow over every
 *   stream there was, as long as clocks are right and an instance appends less than
 *   one record per microsecond.
 *
 * There is one stream for an app, not several shards: so what an instance sees of the locks is
 * never ahead of what it sees of the caches, and who is granted the lock that another
 * released finds what that one has cached. Memory is what the folds keep; records are
 * handled as they come, in one turn, and there is no queue of them.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Health from "../../../services/Health.ts"
import * as Timers from "../../../services/internal/Timers.ts"
import { Instance } from "../../../services/Instance.ts"
import type { Unavailable } from "../../../services/Reason.ts"
import * as Uuid from "../../../services/Uuid.ts"
import { AmqpConnection } from "../AmqpConnection.ts"
import { unavailable } from "../AmqpLink.ts"
import * as AmqpLogStream from "./AmqpLogStream.ts"
import type { Applied, Entry, Fold } from "./Fold.ts"
import { decode, encode, type LogRecord } from "./LogRecord.ts"
import type { LogStream, Session } from "./LogStream.ts"
import * as Waiters from "./Waiters.ts"

export class ReplicatedLog extends Context.Service<
  ReplicatedLog,
  {
    /** Who this instance is in the log, new at every start. Has no `.`. */
    readonly author: string
    readonly timers: Timers.Timers
    readonly timeout: number
    /** How often each instance makes a mark, in milliseconds. */
    readonly beat: number
    /** How much the log retains. */
    readonly retention: AmqpLogStream.Retention
    /**
     * Folds the log from its first record on. If it is `eager`, waits until it has caught up: for the timeout, and for as
     * long as there is something to read, but half a minute at most.
     */
    readonly attach: (fold: Fold) => Effect.Effect<void>
    readonly isLive: () => boolean
    /** Whether memory is not older than `staleness`. */
    readonly isFresh: () => boolean
    /** Whether there is a connection, and nothing was proved for `staleness` all the same. */
    readonly isStalled: () => boolean
    /** Waits until memory is fresh. */
    readonly fresh: Effect.Effect<void, Unavailable>
    /** Waits until everything that was appended before has been read. */
    readonly sync: Effect.Effect<void, Unavailable>
    /** The offset that has been read up to. */
    readonly offset: () => number
    /** How often the log was begun: offsets of one time say nothing at another. */
    readonly beginnings: () => number
    /** The monotonic time than which what is read now was not appended earlier. */
    readonly provenAt: () => number
    /**
     * Appends what `make` gives when the log is ready; calls back once, when it was read again or will not be.
     * What comes back takes it back, without a call: `false` when it was sent already.
     */
    readonly send: (make: () => LogRecord, resume?: (exit: Exit.Exit<Applied, Unavailable>) => void) => () => boolean
    /** Calls back when another instance is not there any more. */
    readonly probe: (author: string, absent: () => void) => void
    readonly append: (make: () => LogRecord) => Effect.Effect<Applied, Unavailable>
  }
>()("cohort/layers/amqp/ReplicatedLog") {}

/** Times in milliseconds. */
export interface Options {
  /** After which an operation fails with `Unavailable`. Default 5 seconds. */
  readonly timeout?: number | undefined
  /** How old memory may be that is answered from. Default 4 seconds. */
  readonly staleness?: number | undefined
  /** How often an instance makes a mark. Default 1 second. */
  readonly beat?: number | undefined
  /**
   * What the stream retains, in bytes, and with it what an instance that starts has to read: some ten thousand
   * records in a second. Default 64 MiB. The same for all instances, for as long as the stream exists.
   */
  readonly maxBytes?: number | undefined
  /** For how long it retains that, in milliseconds. Default 7 days. The same for all instances, too. */
  readonly maxAge?: number | undefined
  /** Whether the broker is there, and is worth waiting for: so whoever comes first does not come late. Default `false`. */
  readonly eager?: boolean | undefined
}

/** So many offsets has RabbitMQ for itself where a segment begins. One that was forgotten has at least one more. */
const reserved = 1

/**
 * For how long whoever starts reads what there is, in milliseconds, before it goes on without. Whoever starts a process gives
 * it a minute (`Supervisor`, the `startupProbe` in `deploy`).
 */
const longestStart = 30_000

/** Whoever waits for the log must have a fair chance to see it come back. */
const reopen = (timeout: number) =>
  Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced(timeout / 10)]).pipe(Schedule.jittered)

/** A record on its way. */
interface Sending {
  readonly make: () => LogRecord
  resume: ((exit: Exit.Exit<Applied, Unavailable>) => void) | undefined
  timer: Timers.Timer | undefined
  sent: number
}

export const make = (
  stream: LogStream,
  options: Options = {}
): Effect.Effect<ReplicatedLog["Service"], never, Scope.Scope> =>
  Effect.gen(function* () {
    const { timeout = 5_000, staleness = 4_000, beat = 1_000, eager = false } = options
    const retention = AmqpLogStream.retentionOf(options)
    const clock = yield* Clock.clockWith(Effect.succeed)
    const run = Effect.runForkWith(yield* Effect.context<never>())
    const timers = yield* Timers.make
    const { now } = timers
    const author = (yield* Uuid.Generator)().replaceAll("-", "").slice(0, 16)

    const folds: Array<Fold> = []
    let session: Session | undefined
    /** Ends the session. */
    let end: (cause: unknown) => void = () => {}
    let live = false
    let closed = false
    let seq = 0
    let epoch = 0
    /** The last record that was read. */
    let last: { readonly offset: number; readonly body: Buffer } | undefined
    /** The number of the last record of every author. */
    const numbers = new Map<string, number>()
    let provenAt = Number.NEGATIVE_INFINITY
    let openedAt = 0
    let stalled = false
    let heardAt = 0
    let beginnings = 0
    /** Where offsets were missing last. */
    let hole: { readonly after: number; readonly next: number } | undefined
    /** Whether this session has still to read the last record of the one before. */
    let isUnchecked = false
    /** The mark that this session began with. */
    let begun = -1

    /** What waits for the log to be ready. */
    const waiting = new Set<Sending>()
    /** What was sent, by its number, earliest first. */
    const sent = new Map<number, Sending>()

    const isFresh = () => live && now() - provenAt < staleness
    const isStalled = () => {
      if (!stalled && session !== undefined && now() - Math.max(provenAt, openedAt) >= staleness) stalled = true
      return stalled
    }
    yield* Health.register(
      "rabbitmq log",
      Effect.sync(() =>
        isStalled() ? Health.down("it has stalled: caches are empty, locks are not granted") : Health.up
      )
    )
    /** Why the log could not be opened, since it was last. */
    let lastError: Unavailable | undefined
    const late = () => {
      const why = lastError === undefined ? "" : ` (${lastError.detail})`
      return unavailable(`no answer within ${timeout} ms${why}`, lastError)
    }
    const awaitingFresh = Waiters.make(timers, timeout, late)

    // --- appending ---

    const settle = (sending: Sending, exit: Exit.Exit<Applied, Unavailable>) => {
      if (sending.timer !== undefined) timers.cancel(sending.timer)
      const { resume } = sending
      sending.resume = undefined
      resume?.(exit)
    }

    const publish = (sending: Sending): number => {
      const number = seq++
      sending.sent = now()
      sent.set(number, sending)
      session!.append(encode({ author, seq: number, record: sending.make() }), (cause) => {
        // Without it this session would never be live.
        if (number === begun) end("its mark was refused")
        if (!sent.delete(number)) return
        settle(sending, Exit.fail(unavailable("the record was refused", cause)))
      })
      return number
    }

    const send = (make: () => LogRecord, resume?: (exit: Exit.Exit<Applied, Unavailable>) => void): Sending => {
      const sending: Sending = { make, resume, timer: undefined, sent: 0 }
      if (closed) {
        settle(sending, Exit.fail(unavailable("the log is closed")))
        return sending
      }
      sending.timer = timers.at(now() + timeout, () => {
        waiting.delete(sending)
        settle(sending, Exit.fail(late()))
      })
      if (live) publish(sending)
      else waiting.add(sending)
      return sending
    }

    const takeBack = (sending: Sending): boolean => {
      sending.resume = undefined
      if (sending.timer !== undefined) timers.cancel(sending.timer)
      return waiting.delete(sending)
    }

    const mark = (): LogRecord => ({ kind: "mark", at: clock.currentTimeMillisUnsafe(), epoch })

    // --- reading ---

    const apply = (offset: number, body: Buffer) => {
      const envelope = decode(body)
      if (envelope === undefined || envelope.seq <= (numbers.get(envelope.author) ?? -1)) return
      numbers.set(envelope.author, envelope.seq)
      const { record } = envelope
      const time = now()
      if (record.kind === "mark") epoch = Math.max(epoch, record.epoch, record.at * 1_000 - offset)
      const own = envelope.author === author ? sent.get(envelope.seq) : undefined
      if (own !== undefined) {
        provenAt = Math.max(provenAt, own.sent)
        stalled = false
      }
      const entry: Entry = {
        offset,
        fence: epoch + offset,
        author: envelope.author,
        record,
        now: time,
        since: provenAt,
        wall: clock.currentTimeMillisUnsafe(),
        size: body.length + AmqpLogStream.recordOverhead
      }
      let answer: unknown
      for (const fold of folds) answer = fold.apply(entry) ?? answer
      if (own === undefined) return
      sent.delete(envelope.seq)
      settle(own, Exit.succeed({ answer, sent: own.sent, offset }))
      if (envelope.seq === begun) becomeLive()
      if (!awaitingFresh.isEmpty() && isFresh()) awaitingFresh.end(Exit.void)
    }

    const becomeLive = () => {
      live = true
      // What an earlier session sent and this one has not read was not appended.
      for (const [number, sending] of sent) {
        if (number > begun) break
        sent.delete(number)
        settle(sending, Exit.fail(unavailable("the connection was lost")))
      }
      for (const fold of folds) fold.live?.()
      const sendings = [...waiting]
      waiting.clear()
      for (const sending of sendings) publish(sending)
    }

    const oneSession = Effect.scoped(
      Effect.gen(function* () {
        const ended = yield* Deferred.make<unknown>()
        let over = false
        const endThis = (cause: unknown) => {
          over = true
          Deferred.doneUnsafe(ended, Exit.succeed(cause))
        }
        // Reads the last record again.
        let checking = last
        heardAt = now()
        isUnchecked = checking !== undefined
        begun = -1
        const opened = yield* stream.open({
          author,
          from: checking?.offset ?? "first",
          onEnd: endThis,
          onRecord: (offset, body) => {
            if (over) return
            heardAt = now()
            // Once is enough.
            if (offset < (checking?.offset ?? (last === undefined ? 0 : last.offset + 1))) return
            if (checking !== undefined) {
              const same = offset === checking.offset && body.equals(checking.body)
              checking = undefined
              isUnchecked = false
              if (same) return
              last = undefined
              return endThis("another log")
            }
            if (last !== undefined && offset > last.offset + 1 + reserved) {
              const isKnown = hole?.after === last.offset && hole.next === offset
              hole = { after: last.offset, next: offset }
              if (!isKnown) return endThis("records are missing")
            }
            if (last === undefined) {
              beginnings++
              provenAt = Number.NEGATIVE_INFINITY
              numbers.clear()
              for (const fold of folds) fold.begin(offset)
            }
            last = { offset, body }
            apply(offset, body)
          }
        })
        if (over) return yield* Deferred.await(ended)
        yield* Effect.addFinalizer(() =>
          Effect.sync(() => {
            over = true
            session = undefined
            end = () => {}
            if (!live) return
            live = false
            for (const fold of folds) fold.away?.()
          })
        )
        session = opened
        openedAt = heardAt = now()
        lastError = undefined
        end = endThis
        begun = publish({ make: mark, resume: undefined, timer: undefined, sent: 0 })
        return yield* Deferred.await(ended)
      })
    )

    const beating: Effect.Effect<never> = Effect.forever(
      Effect.andThen(
        Effect.sleep(beat),
        Effect.sync(() => {
          const time = now()
          if (session === undefined) return
          if (isUnchecked && time - heardAt > staleness / 2) {
            // A stream that ends before the last record that was read is silent.
            last = undefined
            return end("another log, or none")
          }
          if (!stalled && isStalled()) {
            run(Effect.logWarning("The replicated log on RabbitMQ has stalled; caches have nothing until it goes on"))
          }
          if (time - heardAt > staleness) return end("nothing was heard")
          if (!live) return
          // Also when there was much to say: marks carry the epoch, and the log forgets them.
          publish({ make: mark, resume: undefined, timer: undefined, sent: 0 })
          for (const fold of folds) fold.beat?.(time)
        })
      )
    )

    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closed = true
        for (const sending of [...waiting, ...sent.values()]) {
          settle(sending, Exit.fail(unavailable("the log is closed")))
        }
        awaitingFresh.end(Exit.fail(unavailable("the log is closed")))
      })
    )
    // Not before the stores have attached their folds.
    yield* Effect.yieldNow.pipe(
      Effect.andThen(
        Effect.forever(
          oneSession.pipe(
            Effect.flatMap((cause) => Effect.logDebug("The session of the log ended", cause)),
            Effect.tapError((error) => {
              stalled = false
              if (lastError === undefined) {
                lastError = error
                return Effect.logWarning("The replicated log cannot be opened; trying again", error.detail)
              }
              lastError = error
              return Effect.logDebug("The replicated log cannot be opened", error.detail)
            }),
            Effect.retry(reopen(timeout)),
            Effect.andThen(Effect.sleep("20 millis"))
          )
        )
      ),
      Effect.forkScoped
    )
    yield* Effect.forkScoped(beating)
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        if (!live) return
        for (const fold of folds) {
          const record = fold.close?.()
          if (record !== undefined) publish({ make: () => record, resume: undefined, timer: undefined, sent: 0 })
        }
      })
    )

    const fresh = Effect.suspend(() => (isFresh() ? Exit.void : awaitingFresh.wait))

    /** Waits until memory is fresh, or nothing was read for the timeout. */
    const caughtUp: Effect.Effect<void> = Effect.suspend(() => {
      const before = last?.offset
      return Effect.catch(fresh, () => (last?.offset === before ? Effect.void : caughtUp))
    })

    // --- what is asked in one turn shares a mark ---

    let syncing: Array<(exit: Exit.Exit<void, Unavailable>) => void> | undefined
    const joinSync = (resume: (exit: Exit.Exit<void, Unavailable>) => void) => {
      if (syncing !== undefined) return void syncing.push(resume)
      const group = [resume]
      syncing = group
      queueMicrotask(() => {
        syncing = undefined
        send(mark, (exit) => {
          for (const resume of group) resume(Exit.asVoid(exit))
        })
      })
    }

    return ReplicatedLog.of({
      author,
      timers,
      timeout,
      beat,
      retention,
      attach: (fold) =>
        Effect.suspend(() => {
          folds.push(fold)
          // Records that were read already are read again.
          last = undefined
          live = false
          end("another fold")
          return eager
            ? Effect.timeoutOrElse(caughtUp, { duration: longestStart, orElse: () => Effect.void })
            : Effect.void
        }),
      isLive: () => live,
      isFresh,
      isStalled,
      fresh,
      sync: Effect.callback<void, Unavailable>(joinSync),
      offset: () => last?.offset ?? -1,
      provenAt: () => provenAt,
      beginnings: () => beginnings,
      send: (make, resume) => {
        const sending = send(make, resume)
        return () => takeBack(sending)
      },
      probe: (author, absent) => session?.probe(author, absent),
      append: (make) =>
        Effect.callback<Applied, Unavailable>((resume) => {
          const sending = send(make, resume)
          return Effect.sync(() => takeBack(sending))
        })
    })
  })

/**
 * The log of this app on RabbitMQ. Given as one layer to several stores it is one log; the default is
 * {@link layer}.
 */
export const layerWith = (options: Options): Layer.Layer<ReplicatedLog, never, AmqpConnection | Instance> =>
  Layer.effect(
    ReplicatedLog,
    Effect.gen(function* () {
      const amqp = yield* AmqpConnection
      const { app } = yield* Instance
      const stream = AmqpLogStream.make(amqp, app, AmqpLogStream.retentionOf(options))
      const eager = (yield* amqp.state).publishing === "ready"
      return yield* make(stream, { timeout: amqp.timeout, eager, ...options })
    })
  )

export const layer: Layer.Layer<ReplicatedLog, never, AmqpConnection | Instance> = layerWith({})
