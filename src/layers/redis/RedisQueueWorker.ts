/**
 * A worker's hold on a queue in Redis.
 *
 * Jobs are taken from Redis ahead of their handlers, about as many as were handled
 * in the last few milliseconds, so that a quick handler never waits for a round
 * trip. A job that was taken ahead is not started: its attempt does not count, and
 * it goes back when the handlers stop asking. It is handed out once the mark that
 * its attempt counts is with the operating system: that arrives even when the
 * handler kills the process. A take whose reply was lost is undone.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Delivery, Outcome, Settlement, Worker } from "../../services/EventQueueStore.ts"
import * as Timers from "../../services/internal/Timers.ts"
import { Payload } from "../../services/Payload.ts"
import type { Unavailable } from "../../services/Reason.ts"
import * as perTurn from "./perTurn.ts"
import type { RedisConnection } from "./RedisConnection.ts"
import * as Scripts from "./RedisEventQueueScripts.ts"
import { decodeKey, encodeKey, millis } from "./wire.ts"

/** How much work to read ahead, in milliseconds of it, and in jobs. */
const aheadMillis = 10
const mostAhead = 500
/** For how long jobs are counted before it follows how many are handled. */
const countMillis = 5
/** What is less is not worth a request of its own. */
const leastAhead = 4
/** After which a job that was taken ahead goes back, when none was asked for since. */
const giveBackMillis = 20
/** Longest time between two takes of an idle worker, should a wake-up get lost. */
const askAgainMillis = 5_000
/** How many jobs one script works on. */
const mostPerScript = 500

/** What a delivery is known by. */
interface Token {
  /** Of the take that brought it. */
  readonly take: string
  readonly keepId: number
}

const tokenOf = (delivery: Delivery) => delivery.token as Token
/** The claim before and after its start. */
const heldClaim = (delivery: Delivery) => `${delivery.attempt - 1} ${tokenOf(delivery).take}`
const startedClaim = (delivery: Delivery) => `${delivery.attempt} ${tokenOf(delivery).take}+`

/** Jobs of one take that are not started, and until when they may be. */
interface Batch {
  readonly deliveries: Array<Delivery>
  readonly until: number
}

type What = "start" | "renew" | "ack" | "return" | Exclude<Outcome["_tag"], "ack">

/** One wish for a job, and the answer that it is a part of. */
interface Item {
  readonly what: What
  readonly delivery: Delivery
  readonly outcome: Outcome | undefined
  readonly index: number
  readonly answer: Answer
}

interface Answer {
  readonly accepted: Array<boolean>
  left: number
  /** Whether deliveries are handed out only if it is good. */
  isAwaited: boolean
  readonly resume: (result: Exit.Exit<ReadonlyArray<boolean>, Unavailable>) => void
}

export class RedisQueueWorker implements Worker {
  private readonly redis: RedisConnection["Service"]
  private readonly timers: Timers.Timers
  private readonly keys: ReadonlyArray<string>
  readonly channel: string
  private readonly lease: number
  private readonly mostAhead: number
  private readonly name: string
  private takes = 0

  /** Taken ahead, first come first. */
  private batches: Array<Batch> = []
  private held = 0
  /** Whether a take may find something. */
  private maybe = true
  /** Whether the last one found all that it asked for, so that it is worth to read ahead. */
  private full = false
  private readonly waiting = new Set<() => void>()
  private readonly dueTimer: Timers.Timer
  /** The take that is under way: what waits for its end. */
  private taking: Array<(result: Exit.Exit<void, Unavailable>) => void> | undefined
  /** Started by the take that asked for them, or given while idle. */
  private started: Array<Delivery> = []
  /**
   * In what name jobs may be given to this worker, since a take found less than was wanted. One that is under way may
   * turn out to be such a take: a message can be quicker than the reply.
   */
  private idle: string | undefined
  /** What is to be undone: takes whose replies are lost, and gifts since the worker is not idle any more. */
  private undone: Array<string> = []
  /**
   * Until when jobs whose lease has ended are left to those who have them. When Redis was away nobody could renew; whoever
   * lives does so within a third of its lease.
   */
  private patientUntil = Number.NEGATIVE_INFINITY

  /** How many jobs to take ahead, and what that is derived from: how many were handed out since when. */
  private ahead = 0
  private handedOut = 0
  private countedSince = Number.NEGATIVE_INFINITY
  private lastHandOut = 0
  private readonly idleTimer: Timers.Timer

  /** Starts and returns of which it is not known whether they have arrived. */
  private again: Array<Item> = []
  private readonly updates: perTurn.PerTurn<Item>

  constructor(
    redis: RedisConnection["Service"],
    timers: Timers.Timers,
    options: {
      readonly keys: ReadonlyArray<string>
      /** Unlike that of any other worker. */
      readonly name: string
      readonly lease: number
      readonly concurrency: number
    }
  ) {
    this.redis = redis
    this.timers = timers
    this.keys = options.keys
    this.name = options.name
    this.channel = `cohort:queue:${options.name}`
    this.lease = millis(options.lease)
    this.mostAhead = Math.max(mostAhead, Math.min(2 * options.concurrency, 1_000))
    this.dueTimer = new Timers.Call(() => this.wake())
    this.idleTimer = new Timers.Call(() => this.onIdle())
    this.updates = perTurn.make((items) => this.send(items), mostPerScript)
  }

  // --- being told ---

  readonly onMessage = (message: string): void => {
    // Instances of earlier releases do not say whom they wake.
    if (message === "") {
      this.wake()
      return
    }
    const [take, ...jobs] = JSON.parse(message) as [string, ...Array<string>]
    // Else it was undone, or will be. What only wakes tells that nothing was given, and is to be undone.
    if (take !== this.idle) return
    this.idle = undefined
    for (let i = 0; i < jobs.length; i += 2) this.started.push(read(jobs[i]!, jobs[i + 1]!, "", take))
    this.expectHandOut()
    this.wake()
  }

  /** Something may have come. */
  readonly wake = (): void => {
    this.maybe = true
    this.timers.cancel(this.dueTimer)
    this.resumeWaiting()
  }

  private resumeWaiting(): void {
    if (this.waiting.size === 0) return
    const waiting = [...this.waiting]
    this.waiting.clear()
    for (const resume of waiting) resume()
  }

  readonly ready: Effect.Effect<void> = Effect.suspend(() =>
    this.held > 0 || this.started.length > 0 || this.maybe
      ? Exit.void
      : Effect.callback<void>((resume) => {
          const wake = () => resume(Exit.void)
          this.waiting.add(wake)
          return Effect.sync(() => this.waiting.delete(wake))
        })
  )

  // --- taking ---

  take(max: number): Effect.Effect<ReadonlyArray<Delivery>, Unavailable> {
    if (this.started.length === 0 && this.held === 0) {
      if (this.taking === undefined) {
        if (!this.maybe) return Exit.succeed([])
        this.read(max)
      }
      return Effect.flatMap(this.taken, () => this.handOut(max))
    }
    return this.handOut(max)
  }

  /** The end of the take that is under way. */
  private readonly taken = Effect.callback<void, Unavailable>((resume) => {
    if (this.taking === undefined) resume(Exit.void)
    else this.taking.push(resume)
  })

  /** Takes jobs: those that are wanted to be started at once, and some ahead. */
  private read(wanted: number): void {
    const sent = this.timers.now()
    if (sent - this.countedSince >= countMillis) {
      this.ahead = Math.floor(Math.min(this.mostAhead, (this.handedOut * aheadMillis) / (sent - this.countedSince)))
      this.handedOut = 0
      this.countedSince = sent
    }
    const ahead = this.ahead < leastAhead ? 0 : this.ahead
    if (wanted + ahead === 0) return
    if (this.again.length > 0) this.send([])
    const undo = this.leaveIdle()
    const count = Math.min(wanted + ahead, 1_000)
    const take = `${this.name}.${(this.takes++).toString(36)}`
    const waiting: typeof this.taking = []
    this.taking = waiting
    // Whatever comes while it is under way is heard of.
    this.maybe = false
    this.idle = `${take}!`
    const wasAway = !this.redis.isReady()
    const patience = Math.ceil(wasAway ? this.lease / 2 : Math.max(this.patientUntil - sent, 0))
    this.redis.requestRun<[number, ...Array<string>]>(
      Scripts.take,
      this.keys,
      [count, this.lease, take, wanted, this.channel, patience, ...undo],
      (result) => {
        this.taking = undefined
        if (wasAway || result._tag === "Failure") this.bePatient()
        if (result._tag === "Failure") {
          this.undone = [...undo, take, ...this.leaveIdle()]
          this.wake()
        } else {
          this.onTaken(result.value, take, wanted, count, sent)
        }
        for (const resume of waiting) resume(Exit.asVoid(result))
      }
    )
  }

  private bePatient(): void {
    this.patientUntil = this.timers.now() + this.lease / 2
  }

  private onTaken(reply: [number, ...Array<string>], take: string, wanted: number, count: number, sent: number): void {
    const deliveries: Array<Delivery> = []
    for (let i = 1; i < reply.length; i += 3) {
      deliveries.push(read(reply[i] as string, reply[i + 1] as string, reply[i + 2] as string, take))
    }
    this.full = deliveries.length === count
    if (deliveries.length >= wanted) {
      // Not idle: it is told of nothing.
      this.idle = undefined
      this.maybe = true
    } else if (!this.maybe) {
      const wait = reply[0] < 0 ? askAgainMillis : Math.min(reply[0] + 1, askAgainMillis)
      this.timers.start(this.dueTimer, this.timers.now() + wait)
    }
    if (deliveries.length === 0) return
    this.started.push(...deliveries.splice(0, wanted))
    this.expectHandOut()
    if (deliveries.length === 0) return
    this.batches.push({ deliveries, until: sent + this.lease / 3 })
    this.held += deliveries.length
    this.resumeWaiting()
  }

  /** From now on what is given to this worker is not its own. Returns the takes that are to be undone. */
  private leaveIdle(): ReadonlyArray<string> {
    const { undone } = this
    if (this.idle !== undefined) undone.push(this.idle)
    this.idle = undefined
    this.undone = []
    return undone
  }

  private expectHandOut(): void {
    this.lastHandOut = this.timers.now()
    if (!this.idleTimer.pending) this.timers.start(this.idleTimer, this.lastHandOut + giveBackMillis)
  }

  /** Up to `max` of the jobs that were taken: those that are started, or else some that start now. */
  private handOut(max: number): Effect.Effect<ReadonlyArray<Delivery>, Unavailable> {
    const now = this.timers.now()
    this.lastHandOut = now
    if (this.started.length > 0) {
      const out = this.started.splice(0, max)
      this.handedOut += out.length
      return Exit.succeed(out)
    }
    const out: Array<Delivery> = []
    while (out.length < max && this.batches.length > 0) {
      const { deliveries, until } = this.batches[0]!
      if (until > now && deliveries.length > max - out.length) {
        const part = deliveries.splice(0, max - out.length)
        this.held -= part.length
        for (const delivery of part) out.push(delivery)
      } else {
        this.batches.shift()
        this.held -= deliveries.length
        // The lease of others may end before it is first renewed: they come back with it.
        if (until > now) for (const delivery of deliveries) out.push(delivery)
      }
    }
    this.handedOut += out.length
    if (out.length === 0) return Exit.succeed(out)
    let marked: Exit.Exit<ReadonlyArray<boolean>, Unavailable> | undefined
    let whenMarked: ((result: Exit.Exit<ReadonlyArray<boolean>, Unavailable>) => void) | undefined
    const answer = this.ask("start", out, undefined, (result) => {
      marked = result
      whenMarked?.(result)
    })
    this.updates.flush()
    if (this.full && this.taking === undefined && this.held <= this.ahead / 2) this.read(0)
    if (this.redis.flush()) return Exit.succeed(out)
    answer.isAwaited = true
    return Effect.mapBoth(
      Effect.callback<ReadonlyArray<boolean>, Unavailable>((resume) => {
        if (marked !== undefined) resume(marked)
        else whenMarked = resume
      }),
      {
        onFailure: (error) => {
          this.takeBack(out)
          return error
        },
        onSuccess: (accepted) => out.filter((_, i) => accepted[i])
      }
    )
  }

  /** Nobody has got these jobs: they go back, whether or not their starts have arrived. */
  private takeBack(deliveries: ReadonlyArray<Delivery>): void {
    const first = deliveries.toReversed()
    this.ask("return", first, undefined, () => {})
    this.ask("release", first, undefined, () => {})
    this.maybe = true
  }

  /** Nobody asks for what was taken: others shall have it. */
  private onIdle(): void {
    if (this.held === 0 && this.started.length === 0) return
    const due = this.lastHandOut + giveBackMillis
    if (due > this.timers.now()) {
      this.timers.start(this.idleTimer, due)
      return
    }
    this.ahead = 0
    this.giveBack(() => {})
  }

  private giveBack(resume: Answer["resume"]): void {
    if (this.started.length === 0 && this.held === 0) {
      resume(Exit.succeed([]))
      return
    }
    const { started } = this
    const held = this.batches.flatMap((batch) => batch.deliveries)
    this.started = []
    this.batches = []
    this.held = 0
    // There is something, for whoever asks first.
    this.maybe = true
    const answer: Answer = { accepted: [], left: held.length + started.length, isAwaited: false, resume }
    let index = 0
    // The first one is put to the front last.
    for (const delivery of held.reverse()) {
      this.updates.add({ what: "return", delivery, outcome: undefined, index: index++, answer })
    }
    for (const delivery of started.reverse()) {
      this.updates.add({ what: "release", delivery, outcome: undefined, index: index++, answer })
    }
  }

  /** Returns when Redis has it all: a connection that is closed next would take what is still to be sent with it. */
  readonly pause: Effect.Effect<void, Unavailable> = Effect.suspend(() =>
    Effect.andThen(
      Effect.ignore(this.taken),
      Effect.callback<void, Unavailable>((resume) => {
        const undo = this.leaveIdle()
        if (undo.length > 0) this.maybe = true
        this.giveBack((returned) => {
          if (undo.length === 0) return resume(Exit.asVoid(returned))
          this.redis.requestRun(Scripts.abandon, this.keys, undo, (result) => {
            if (result._tag === "Failure") this.undone.push(...undo)
            resume(Exit.asVoid(returned._tag === "Failure" ? returned : result))
          })
        })
      })
    )
  )

  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    this.timers.cancel(this.dueTimer)
    this.timers.cancel(this.idleTimer)
    return Effect.ignore(this.pause)
  })

  // --- what becomes of them ---

  renew(deliveries: ReadonlyArray<Delivery>): Effect.Effect<ReadonlyArray<boolean>, Unavailable> {
    return Effect.callback((resume) => {
      this.ask("renew", deliveries, undefined, resume)
    })
  }

  settle(settlements: ReadonlyArray<Settlement>): Effect.Effect<ReadonlyArray<boolean>, Unavailable> {
    return Effect.callback((resume) => {
      const answer: Answer = { accepted: [], left: settlements.length, isAwaited: false, resume }
      for (const [index, { delivery, outcome }] of settlements.entries()) {
        this.updates.add({ what: outcome._tag, delivery, outcome, index, answer })
      }
    })
  }

  private ask(
    what: What,
    deliveries: ReadonlyArray<Delivery>,
    outcome: Outcome | undefined,
    resume: Answer["resume"]
  ): Answer {
    const answer: Answer = { accepted: [], left: deliveries.length, isAwaited: false, resume }
    if (deliveries.length === 0) resume(Exit.succeed([]))
    for (const [index, delivery] of deliveries.entries()) {
      this.updates.add({ what, delivery, outcome, index, answer })
    }
    return answer
  }

  private send(items: Array<Item>): void {
    items.push(...this.again)
    this.again = []
    const starts: Array<Item> = []
    const renewals: Array<Item> = []
    const acks: Array<Item> = []
    const others: Array<Item> = []
    for (const item of items) {
      if (item.what === "start") starts.push(item)
      else if (item.what === "renew") renewals.push(item)
      else if (item.what === "ack") acks.push(item)
      else others.push(item)
    }
    const args: Array<string | number> = [this.lease, starts.length, renewals.length, acks.length, others.length]
    for (const { delivery } of starts) {
      args.push(encodeKey(delivery.id), heldClaim(delivery), startedClaim(delivery))
    }
    for (const { delivery } of renewals) args.push(encodeKey(delivery.id), startedClaim(delivery))
    for (const { delivery } of acks) {
      args.push(encodeKey(delivery.id), startedClaim(delivery), tokenOf(delivery).keepId)
    }
    for (const { delivery, outcome, what } of others) {
      const claim = what === "return" ? heldClaim(delivery) : startedClaim(delivery)
      const delay = outcome !== undefined && "delay" in outcome && outcome.delay > 0 ? millis(outcome.delay) : 0
      const error = outcome !== undefined && "error" in outcome ? outcome.error : ""
      const reason = outcome?._tag === "bury" ? outcome.reason : ""
      args.push(what, encodeKey(delivery.id), claim, delay, tokenOf(delivery).keepId, reason, error)
    }
    this.redis.requestRun<string>(Scripts.update, this.keys, args, (result) => {
      if (result._tag === "Failure") this.bePatient()
      let i = 0
      for (const part of [starts, renewals, acks, others]) {
        for (const item of part) {
          const { answer, index } = item
          if (result._tag === "Success") {
            answer.accepted[index] = result.value.charCodeAt(i++) === 49
            if (--answer.left === 0) answer.resume(Exit.succeed(answer.accepted))
            continue
          }
          // What the worker has not asked for it does not try again.
          if (item.outcome === undefined && item.what !== "renew" && !answer.isAwaited) this.again.push(item)
          if (answer.left <= 0) continue
          answer.left = 0
          answer.resume(Exit.failCause(result.cause))
        }
      }
    })
  }
}

/** A delivery from what `take` returned. */
const read = (id: string, record: string, history: string, take: string): Delivery => {
  const [, timeout, maxRetries, keepId, payload] = readRecord(record)
  const space = history.indexOf(" ")
  const attempts = history === "" ? 0 : Number(space < 0 ? history : history.slice(0, space))
  return {
    id: decodeKey(id),
    payload: Payload.fromJson(payload),
    attempt: attempts + 1,
    timeout,
    maxRetries,
    lastError: space < 0 ? undefined : history.slice(space + 1),
    token: { take, keepId } satisfies Token
  }
}

/** `publishedAt`, `timeout`, `maxRetries`, `keepId` and the payload. */
export const readRecord = (record: string): readonly [number, number, number, number, string] => {
  const a = record.indexOf(" ")
  const b = record.indexOf(" ", a + 1)
  const c = record.indexOf(" ", b + 1)
  const d = record.indexOf(" ", c + 1)
  return [
    Number(record.slice(0, a)),
    Number(record.slice(a + 1, b)),
    Number(record.slice(b + 1, c)),
    Number(record.slice(c + 1, d)),
    record.slice(d + 1)
  ]
}
