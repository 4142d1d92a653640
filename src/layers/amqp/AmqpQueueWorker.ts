/**
 * A worker's hold on a queue in RabbitMQ: a channel that is given as many jobs as the
 * worker may hold.
 *
 * RabbitMQ counts how often it has taken a job back, and that counts as attempts. But a quorum queue also takes back
 * what was on its way to a consumer that is cancelled, unseen: whoever cancels one tells every worker before, through
 * the log, and the first deliveries that were taken back since are forgiven.
 *
 * It consumes from its first take to its next pause. What it was given and did not
 * start goes back as a copy, behind the others: RabbitMQ counts every delivery that
 * it takes back itself as an attempt. An attempt ends in the channel that began it, or
 * nowhere: when that is over, RabbitMQ has given the job to someone else.
 */
import type { ConsumeMessage } from "amqplib"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Semaphore from "effect/Semaphore"
import type { Delivery, Outcome, Settlement, Worker } from "../../services/EventQueueStore.ts"
import * as Timers from "../../services/internal/Timers.ts"
import { Payload } from "../../services/Payload.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { reasonOf } from "../internal/Reconnect.ts"
import { unavailable } from "./AmqpLink.ts"
import type { Names } from "./AmqpQueueNames.ts"
import { type Job, readJob } from "./AmqpQueueRecord.ts"
import type { Session, Sessions } from "./AmqpSession.ts"

/** What RabbitMQ gives one consumer at most, however many its worker may hold. */
const mostHeld = 2_000
/** After which a job that was given goes back, when none was asked for. */
const giveBackMillis = 50
/** How long to wait for the first job of a queue that has some. */
const firstMillis = 100
/** How long the end of a delay is remembered, in milliseconds. */
const rememberMillis = 10_000

/** How often a worker writes down that it is there, and after which it does if that failed, in milliseconds. */
const announceMillis = 86_400_000
const announceAgainMillis = 500

/** Deliveries of a job that are taken for lost on the way to a cancelled consumer, and not for attempts, at most. */
const mostForgiven = 2

/** What a delivery is known by. */
interface Token {
  readonly session: Session
  readonly message: ConsumeMessage
  readonly job: Job
  /** Once it is acknowledged. */
  settled: boolean
}

/** Whether nothing has to be written down before it is acknowledged. */
const isPlain = ({ delivery, outcome }: Settlement) =>
  outcome._tag === "ack" && tokenOf(delivery).job.meta.claim === undefined

const tokenOf = (delivery: Delivery) => delivery.token as Token

/** What a worker says when asked. */
export interface Answer {
  readonly name: string
  readonly held: number
  /** Its consumers, with those that are cancelled and still hold something. */
  readonly consumers: number
  /** Grows with every job that comes or goes. */
  readonly version: number
  /** Delays that have ended. */
  readonly ended: ReadonlyArray<string>
}

/**
 * Writes down what becomes of a job, before it is acknowledged; `false` when it cannot be written, and RabbitMQ itself has to
 * make a dead letter of it.
 */
export type Forward = (delivery: Delivery, job: Job, outcome: Outcome) => Effect.Effect<boolean, Unavailable>

export class AmqpQueueWorker implements Worker {
  private readonly names: Names
  private readonly name: string
  private readonly isOver: (claim: string) => boolean
  private readonly pausing: Effect.Effect<void, Unavailable>
  private readonly pausedUntil: () => number
  private readonly prefetch: number
  private readonly forward: Forward
  private readonly now: () => number
  private readonly runFork: (effect: Effect.Effect<unknown>) => unknown
  private sessions: Sessions | undefined

  /** Beginning to consume and pausing take turns. */
  private readonly changing = Semaphore.makeUnsafe(1)
  /** Whether it takes jobs, and through which consumer of which session. */
  private consuming = false
  private consumer:
    | { readonly session: Session; readonly tag: string; readonly cancel: Promise<() => Promise<void>> }
    | undefined
  private consumers = 0
  /** Given, but not taken. */
  private given: Array<Delivery> = []
  /** What is not acknowledged, with the tag of the consumer that it was given to. */
  private readonly held = new Map<ConsumeMessage, string>()
  private version = 0
  /** What goes back unasked: open while that is nothing. */
  private readonly returned = Latch.makeUnsafe(true)
  private returning = 0
  /** When delays have ended, oldest first. */
  private readonly ended = new Map<string, number>()
  private wake: (() => void) | undefined
  private waking = false
  private readonly timers: Timers.Timers
  private readonly announce: (queue: string) => Effect.Effect<void, Unavailable>
  private readonly reply: (queue: string, answer: Buffer, correlationId: string) => void
  private telling: Timers.Timer | undefined
  private readonly unwanted: Timers.Timer

  constructor(options: {
    readonly names: Names
    /** Unlike that of any other. */
    readonly name: string
    readonly concurrency: number
    readonly forward: Forward
    /** Writes down through which queue it is asked. */
    readonly announce: (queue: string) => Effect.Effect<void, Unavailable>
    /** Answers a question; not through the session: RabbitMQ may stop to read from connections that publish. */
    readonly reply: (queue: string, answer: Buffer, correlationId: string) => void
    /** Whether the job of a claim has ended. */
    readonly isOver: (claim: string) => boolean
    /** Tells every worker that a consumer is about to be cancelled, and until when that was last. */
    readonly pausing: Effect.Effect<void, Unavailable>
    readonly pausedUntil: () => number
    readonly now: () => number
    readonly timers: Timers.Timers
    readonly runFork: (effect: Effect.Effect<unknown>) => unknown
  }) {
    this.names = options.names
    this.name = options.name
    this.isOver = options.isOver
    this.pausing = options.pausing
    this.pausedUntil = options.pausedUntil
    this.prefetch = Math.min(options.concurrency, mostHeld)
    this.forward = options.forward
    this.now = options.now
    this.runFork = options.runFork
    this.timers = options.timers
    this.announce = options.announce
    this.reply = options.reply
    this.unwanted = new Timers.Call(() => this.runFork(Effect.ignore(this.pause)))
  }

  attach(sessions: Sessions): void {
    this.sessions = sessions
  }

  readonly setup = async (session: Session): Promise<void> => {
    const { channel } = session
    const { names } = this
    // What came on one that ended before it was set up is not ours either.
    this.onDown()
    await names.declare(channel)
    const { queue } = await channel.assertQueue("", {
      exclusive: true,
      durable: false,
      autoDelete: true,
      arguments: { "x-queue-type": "classic" }
    })
    await session.consume(queue, (question) => this.answer(question), { noAck: true })
    this.tell(session, queue)
    if (this.consuming) await this.consume(session)
  }

  readonly onDown = (): void => {
    if (this.telling !== undefined) this.timers.cancel(this.telling)
    this.given = []
    this.held.clear()
    this.version++
    this.consumer = undefined
  }

  /** Delays that have ended lately. */
  endedDelays(): ReadonlyArray<string> {
    this.forgetDelays()
    return [...this.ended.keys()]
  }

  private forgetDelays(): void {
    const old = this.now() - rememberMillis
    for (const [nonce, at] of this.ended) {
      if (at > old) break
      this.ended.delete(nonce)
    }
  }

  /** Writes down that there is a worker, and through which queue it is asked; now, and before that is forgotten. */
  private tell(session: Session, queue: string): void {
    const again = (delay: number) => () => {
      if (session.over) return
      this.telling = this.timers.at(this.timers.now() + delay, () => this.tell(session, queue))
    }
    this.runFork(
      Effect.match(this.announce(queue), { onSuccess: again(announceMillis), onFailure: again(announceAgainMillis) })
    )
  }

  private answer({ properties }: ConsumeMessage): void {
    const answer: Answer = {
      name: this.name,
      held: this.held.size,
      consumers: new Set([...this.held.values(), ...(this.consumer === undefined ? [] : [this.consumer.tag])]).size,
      version: this.version,
      ended: this.endedDelays()
    }
    const { correlationId, replyTo } = properties as { readonly correlationId: string; readonly replyTo: string }
    this.reply(replyTo, Buffer.from(JSON.stringify(answer)), correlationId)
  }

  private async consume(session: Session): Promise<void> {
    if (this.consumer?.session !== session) {
      const tag = `jobs-${this.consumers++}`
      const consume = async () => {
        await session.channel.prefetch(this.prefetch)
        return session.consume(this.names.jobs, (message) => this.onDelivery(session, message), { consumerTag: tag })
      }
      this.consumer = { session, tag, cancel: consume() }
    }
    await this.consumer.cancel
  }

  private onDelivery(session: Session, message: ConsumeMessage): void {
    const job = readJob(message.content)
    this.held.set(message, message.fields.consumerTag)
    this.version++
    // Nobody of ours has put it there, or it is a copy: its publisher or a worker was cut off.
    if (job === undefined || (job.meta.claim !== undefined && this.isOver(job.meta.claim))) {
      session.ack(message)
      this.held.delete(message)
      return
    }
    const { meta, payload } = job
    const returns = Number(message.properties.headers?.["x-delivery-count"] ?? 0)
    const token: Token = { session, message, job, settled: false }
    const delivery: Delivery = {
      id: meta.id,
      payload: Payload.fromJson(payload),
      attempt: meta.attempts + returns + 1,
      timeout: meta.timeout,
      maxRetries: meta.maxRetries,
      lastError: meta.lastError,
      token
    }
    if (meta.nonce !== undefined) {
      this.forgetDelays()
      this.ended.set(meta.nonce, this.now())
    }
    const early = (meta.until ?? 0) - this.now()
    if (returns > 0 && (meta.forgiven ?? 0) < mostForgiven && this.pausedUntil() >= (meta.since ?? meta.publishedAt)) {
      this.forgive(delivery, token)
    } else if (early > 0) {
      this.giveBackSoon(delivery, early)
    } else this.give(delivery)
  }

  /** Puts a job back with one delivery less: it was given to a consumer that was cancelled before it came. */
  private forgive(delivery: Delivery, { job, message, session, ...rest }: Token): void {
    const forgiven = { ...job.meta, forgiven: (job.meta.forgiven ?? 0) + 1 }
    const token: Token = { ...rest, message, session, job: { ...job, meta: forgiven } }
    const back = { ...delivery, attempt: delivery.attempt - 1, token }
    this.giveBackSoon(back, 0)
  }

  /** If that fails, it goes back when the channel ends. */
  private giveBackSoon(delivery: Delivery, delay: number): void {
    this.returning++
    this.returned.closeUnsafe()
    const done = Effect.sync(() => {
      if (--this.returning === 0) this.returned.openUnsafe()
    })
    this.runFork(Effect.ensuring(Effect.ignore(this.settleOne(delivery, { _tag: "release", delay })), done))
  }

  // --- taking ---

  /**
   * Returns when a job was given. While it does not consume it looks whether there are any, which leaves them to
   * others, and begins when there are none.
   */
  readonly ready: Effect.Effect<void, Unavailable> = Effect.suspend(() => {
    if (this.given.length > 0) return Exit.void
    if (this.consuming) return this.next
    return Effect.flatMap(this.look, (count) =>
      count > 0 ? Effect.void : Effect.flatMap(this.begin, () => (this.given.length > 0 ? Effect.void : this.next))
    )
  })

  private readonly next: Effect.Effect<void> = Effect.callback<void>((resume) => {
    const wake = () => {
      this.wake = undefined
      resume(Exit.void)
    }
    this.wake = wake
    return Effect.sync(() => {
      if (this.wake === wake) this.wake = undefined
    })
  })

  take(max: number): Effect.Effect<ReadonlyArray<Delivery>, Unavailable> {
    if (this.given.length > 0 || this.consuming) return Exit.succeed(this.takeGiven(max))
    return Effect.gen({ self: this }, function* () {
      const count = yield* this.look
      yield* this.begin
      if (count > 0 && this.given.length === 0) yield* Effect.timeoutOption(this.next, firstMillis)
      return this.takeGiven(max)
    })
  }

  private takeGiven(max: number): ReadonlyArray<Delivery> {
    const taken = this.given.splice(0, max)
    if (this.given.length === 0) this.timers.cancel(this.unwanted)
    else this.timers.start(this.unwanted, this.timers.now() + giveBackMillis)
    return taken
  }

  private readonly look: Effect.Effect<number, Unavailable> = this.onSession(async (session) => {
    const { messageCount } = await this.names.declareJobs(session.channel)
    return messageCount
  })

  private readonly begin: Effect.Effect<void, Unavailable> = this.changing.withPermit(
    Effect.suspend(() => {
      this.consuming = true
      return this.onSession((session) => this.consume(session))
    })
  )

  private onSession<A>(use: (session: Session) => Promise<A>): Effect.Effect<A, Unavailable> {
    return Effect.suspend(() =>
      Effect.flatMap(this.sessions!.ready, (session) =>
        Effect.tryPromise({
          try: () => use(session),
          catch: (error) => {
            session.abandon(error)
            return unavailable(reasonOf(error), error)
          }
        })
      )
    )
  }

  readonly pause: Effect.Effect<void, Unavailable> = this.changing.withPermit(
    Effect.suspend(() => {
      this.consuming = false
      // Whoever waits for a job is to look for it himself.
      this.wake?.()
      const { consumer } = this
      this.consumer = undefined
      if (consumer === undefined || consumer.session.over) return this.giveBack()
      const cancel = Effect.promise(async () => {
        try {
          await (await consumer.cancel)()
        } catch (error) {
          consumer.session.abandon(error)
        }
      })
      return Effect.ignore(this.pausing).pipe(
        Effect.andThen(cancel),
        Effect.andThen(Effect.suspend(() => this.giveBack())),
        // A channel that ends in between leaves it there twice.
        Effect.andThen(this.returned.await)
      )
    })
  )

  private giveBack(): Effect.Effect<void, Unavailable> {
    const { given } = this
    this.given = []
    this.timers.cancel(this.unwanted)
    return Effect.forEach(
      given,
      (delivery) =>
        Effect.onError(this.settleOne(delivery, { _tag: "release", delay: 0 }), () =>
          Effect.sync(() => this.give(delivery))
        ),
      { discard: true, concurrency: "unbounded" }
    )
  }

  private give(delivery: Delivery): void {
    if (tokenOf(delivery).session.over) return
    this.given.push(delivery)
    if (!this.unwanted.pending) this.timers.start(this.unwanted, this.timers.now() + giveBackMillis)
    if (this.waking) return
    // What comes in one turn is taken together, and acknowledged so.
    this.waking = true
    queueMicrotask(() => {
      this.waking = false
      this.wake?.()
    })
  }

  // --- what becomes of them ---

  renew(deliveries: ReadonlyArray<Delivery>): Effect.Effect<ReadonlyArray<boolean>, Unavailable> {
    return Exit.succeed(deliveries.map((delivery) => !tokenOf(delivery).session.over))
  }

  settle(settlements: ReadonlyArray<Settlement>): Effect.Effect<ReadonlyArray<boolean>, Unavailable> {
    if (settlements.every(isPlain)) {
      this.ackTogether(settlements)
      return Exit.succeed(settlements.map(({ delivery }) => this.ack(delivery)))
    }
    // Each to its end: one that is interrupted after its copy was published would be published again.
    const settled = Effect.flatMap(
      Effect.forEach(settlements, ({ delivery, outcome }) => Effect.exit(this.settleOne(delivery, outcome)), {
        concurrency: "unbounded"
      }),
      (exits) => Effect.forEach(exits, (exit) => exit)
    )
    // What is given back is for others.
    return settlements.some(({ outcome }) => outcome._tag === "release" && outcome.delay === 0)
      ? Effect.andThen(this.pause, settled)
      : settled
  }

  /** One acknowledgement for the oldest of what is held, as far as all of it has ended. */
  private ackTogether(settlements: ReadonlyArray<Settlement>): void {
    if (settlements.length === 1) return
    const ending = new Map(
      settlements.map(({ delivery }) => {
        const token = tokenOf(delivery)
        return [token.message, token]
      })
    )
    const oldest: Array<Token> = []
    for (const message of this.held.keys()) {
      const token = ending.get(message)
      if (token === undefined) break
      oldest.push(token)
    }
    const last = oldest.at(-1)
    if (oldest.length < 2 || !last!.session.ack(last!.message, true)) return
    for (const token of oldest) this.settled(token)
  }

  private settled(token: Token): void {
    token.settled = true
    this.held.delete(token.message)
    this.version++
  }

  private ack(delivery: Delivery, isForwarded = true): boolean {
    const token = tokenOf(delivery)
    // A batch of which a part failed is settled again.
    if (token.settled) return true
    if (!(isForwarded ? token.session.ack(token.message) : token.session.reject(token.message))) return false
    this.settled(token)
    return true
  }

  private settleOne(delivery: Delivery, outcome: Outcome): Effect.Effect<boolean, Unavailable> {
    if (isPlain({ delivery, outcome })) return Effect.sync(() => this.ack(delivery))
    const { job, session, settled } = tokenOf(delivery)
    if (settled) return Effect.succeed(true)
    if (session.over) return Effect.succeed(false)
    // Twice is better than never: what it becomes is there before it goes.
    return Effect.map(this.forward(delivery, job, outcome), (isForwarded) => this.ack(delivery, isForwarded))
  }
}
