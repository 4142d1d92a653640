/**
 * A channel that is kept: what a subscription consumes through.
 *
 * A session is one channel, from the moment its `setup` has declared and consumed
 * what it needs until it is over: because the connection is lost, RabbitMQ closes
 * the channel, or cancels the consumer since the queue is gone. Then the next one is
 * set up. Acknowledgements go to the session that delivered, or nowhere.
 */
import type { Channel, ConsumeMessage, Options } from "amqplib"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Timers from "../../services/internal/Timers.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { reasonOf } from "../internal/Reconnect.ts"
import { type Live, unavailable } from "./AmqpLink.ts"

/** How long to wait before a channel is opened again, at first and at most, in milliseconds. */
const firstDelay = 50
const longestDelay = 2_000

/** How many cancelled consumers are remembered: nothing comes for one after the first answer, or the second. */
const mostCancelled = 16

/** Of amqplib's channels, but not of their type. */
interface Registering {
  readonly registerConsumer: (tag: string, callback: (message: ConsumeMessage | null) => void) => void
  readonly unregisterConsumer: (tag: string) => void
}

/** One channel. */
export class Session {
  readonly channel: Channel
  over = false
  /** Consumers that were cancelled, and still have what comes. */
  private readonly cancelled: Array<string> = []
  private readonly onEnd: (session: Session, error: unknown) => void
  private readonly onDefect: (error: unknown) => void

  constructor(channel: Channel, onEnd: (session: Session, error: unknown) => void, onDefect: (error: unknown) => void) {
    this.channel = channel
    this.onEnd = onEnd
    this.onDefect = onDefect
    let error: unknown
    channel.on("error", (reason) => {
      error = reason
    })
    channel.on("close", () => this.end(error))
  }

  /** Consumes; `onDelivery` is called while the session lasts. Gives what cancels it. */
  async consume(
    queue: string,
    onDelivery: (message: ConsumeMessage) => void,
    options?: Options.Consume
  ): Promise<() => Promise<void>> {
    const { channel } = this
    const receive = (message: ConsumeMessage | null) => {
      if (this.over) return
      if (message === null) return this.abandon(new Error(`the queue ${queue} is gone`))
      try {
        onDelivery(message)
      } catch (error) {
        // Thrown on, it would end the channel.
        this.onDefect(error)
      }
    }
    const { consumerTag } = await channel.consume(queue, receive, options)
    return async () => {
      await channel.cancel(consumerTag)
      // A quorum queue may have sent more by then; amqplib would take it for an error.
      const consumers = channel as unknown as Registering
      consumers.registerConsumer(consumerTag, receive)
      if (this.cancelled.push(consumerTag) > mostCancelled) consumers.unregisterConsumer(this.cancelled.shift()!)
      // It is here before the answer to what is asked next.
      await channel.prefetch(1)
    }
  }

  /** Acknowledges what this session delivered, or all up to it; tells whether it was still there to do so. */
  ack(message: ConsumeMessage, upTo = false): boolean {
    return this.send(() => this.channel.ack(message, upTo))
  }

  /** Gives back what this session delivered; tells whether it was still there to do so. */
  requeue(message: ConsumeMessage): boolean {
    return this.send(() => this.channel.nack(message, false, true))
  }

  /** Gives up what this session delivered, to the queue's dead letters; tells whether it was still there to do so. */
  reject(message: ConsumeMessage): boolean {
    return this.send(() => this.channel.nack(message, false, false))
  }

  private send(act: () => void): boolean {
    if (this.over) return false
    try {
      act()
      return true
    } catch {
      // The channel closes: amqplib knows before it tells.
      return false
    }
  }

  /** Ends it; what it holds goes back to the queue. */
  abandon(error: unknown): void {
    if (this.over) return
    this.end(error)
    try {
      this.channel.close().catch(() => undefined)
    } catch {
      // Closed already.
    }
  }

  private end(error: unknown): void {
    if (this.over) return
    this.over = true
    this.onEnd(this, error)
  }
}

export interface SessionOptions {
  /** Declares and consumes; whatever fails is tried again, on another channel. */
  readonly setup: (session: Session) => Promise<unknown>
  /** The session is set up. What it delivers may come before. */
  readonly onUp?: ((session: Session) => void) | undefined
  /** A session that was set up is over. */
  readonly onDown?: (() => void) | undefined
}

export interface Sessions {
  /** The one that is set up. */
  readonly current: () => Session | undefined
  /** Waits until one is set up, within the timeout. */
  readonly ready: Effect.Effect<Session, Unavailable>
}

/** What the connection has to do with sessions. */
export interface Registry {
  /** Keeps sessions until the scope closes, which waits until the channel is closed. */
  readonly open: (options: SessionOptions) => Effect.Effect<Sessions, never, Scope.Scope>
  readonly isAwaited: () => boolean
  readonly onUp: (live: Live) => void
  readonly onClosed: () => void
}

export const makeRegistry = (options: {
  readonly timers: Timers.Timers
  readonly timeout: number
  readonly live: () => Live | undefined
  /** Asks for the connection. */
  readonly connect: () => void
  readonly isClosed: () => boolean
  readonly lastError: () => unknown
  readonly log: (entry: Effect.Effect<void>) => void
}): Registry => {
  const { timeout, timers } = options
  const keepers = new Set<{ readonly start: () => void; readonly giveUp: () => void }>()
  let waiters = 0

  const open = ({ onDown, onUp, setup }: SessionOptions): Effect.Effect<Sessions, never, Scope.Scope> =>
    Effect.map(
      Effect.acquireRelease(
        Effect.sync(() => {
          const waiting = new Set<(result: Effect.Effect<Session, Unavailable>) => void>()
          let current: Session | undefined
          /** The attempt or session that is under way; what comes of an older one is nobody's. */
          let era = 0
          let delay = firstDelay
          let lastError: unknown
          let closed = false

          const settle = (result: Effect.Effect<Session, Unavailable>) => {
            for (const resume of [...waiting]) resume(result)
          }

          const onEnd = (mine: number, error: unknown) => {
            if (mine !== era || closed) return
            era++
            timers.cancel(patience)
            lastError = error ?? lastError
            const wasUp = current !== undefined
            current = undefined
            if (wasUp) onDown?.()
            const next = era
            // amqplib ends the channels of a connection first, and then the connection: the next one starts it again.
            queueMicrotask(() => {
              if (closed || next !== era || options.live() === undefined) return
              options.log(Effect.logWarning("A RabbitMQ channel ended; opening another", reasonOf(error)))
              timers.start(again, timers.now() + delay)
              delay = Math.min(2 * delay, longestDelay)
            })
          }

          const start = () => {
            const live = options.live()
            if (closed || live === undefined) return
            timers.cancel(again)
            const mine = ++era
            let session: Session | undefined
            timers.start(patience, timers.now() + timeout)
            patience.onTime = () => {
              const error = new Error(`not set up within ${timeout} ms`)
              if (session === undefined) onEnd(mine, error)
              else session.abandon(error)
            }
            const attempt = async () => {
              const channel = await live.model.createChannel()
              session = new Session(
                channel,
                (_, error) => onEnd(mine, error),
                (error) => options.log(Effect.logError("A RabbitMQ consumer failed", error))
              )
              if (mine === era) await setup(session)
              if (mine !== era) return session.abandon(undefined)
              timers.cancel(patience)
              delay = firstDelay
              lastError = undefined
              current = session
              onUp?.(session)
              settle(Effect.succeed(session))
            }
            attempt().catch((error) => {
              if (session === undefined) onEnd(mine, error)
              else session.abandon(error)
            })
          }
          const again = new Timers.Call(start)
          const patience = new Patience()

          const keeper = {
            start,
            giveUp: () => settle(Effect.fail(unavailable("the connection is closed", options.lastError())))
          }
          keepers.add(keeper)
          start()
          options.connect()

          const ready = Effect.callback<Session, Unavailable>((resume) => {
            if (current !== undefined) return resume(Effect.succeed(current))
            const end = (result: Effect.Effect<Session, Unavailable>) => {
              waiting.delete(end)
              waiters--
              timers.cancel(timer)
              resume(result)
            }
            const timer = timers.at(timers.now() + timeout, () => {
              const cause = options.lastError() ?? lastError
              const why = cause === undefined ? "" : ` (${reasonOf(cause)})`
              end(Effect.fail(unavailable(`not subscribed within ${timeout} ms${why}`, cause)))
            })
            waiting.add(end)
            waiters++
            if (options.isClosed()) keeper.giveUp()
            else options.connect()
            return Effect.sync(() => {
              if (!waiting.delete(end)) return
              waiters--
              timers.cancel(timer)
            })
          })

          const close = Effect.callback<void>((resume) => {
            closed = true
            era++
            keepers.delete(keeper)
            timers.cancel(again)
            timers.cancel(patience)
            const session = current
            if (session === undefined || session.over) return resume(Effect.void)
            const timer = timers.at(timers.now() + Math.min(timeout, 1_000), () => resume(Effect.void))
            session.channel.once("close", () => {
              timers.cancel(timer)
              resume(Effect.void)
            })
            session.abandon(undefined)
          })

          return { current: () => current, ready, close }
        }),
        ({ close }) => close
      ),
      ({ current, ready }) => ({ current, ready })
    )

  return {
    open,
    isAwaited: () => waiters > 0,
    onUp: () => {
      for (const { start } of keepers) start()
    },
    onClosed: () => {
      for (const { giveUp } of keepers) giveUp()
    }
  }
}

/** For how long an attempt is waited for. */
class Patience extends Timers.Call {
  onTime: () => void = () => {}

  constructor() {
    super(() => this.onTime())
  }
}
