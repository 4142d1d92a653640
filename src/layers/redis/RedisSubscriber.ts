/**
 * The connection that subscriptions share.
 *
 * Subscribers of one channel share its SUBSCRIBE; the last one to leave takes it
 * back. Redis handles commands of one connection in order, so joining while the
 * channel is being left is safe. After a reconnect every channel is subscribed
 * again, once, and every subscriber is told of the gap before anything else.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import type { Redis } from "ioredis"
import { Call, type Timers } from "../../services/internal/Timers.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { reasonOf } from "../internal/Reconnect.ts"
import { type Link, unavailable, withoutArguments } from "./RedisLink.ts"

interface Subscriber {
  readonly onMessage: (message: string) => void
  readonly onGap: () => void
  /** Whether something may have been missed since it was last told. */
  gap: boolean
  /** Waits for the confirmation; it counts as a subscriber from the start. */
  waiting: ((result: Effect.Effect<void, Unavailable>) => void) | undefined
}

class Channel {
  readonly subscribers = new Set<Subscriber>()
  confirmed = false
  /** Whether it was confirmed once, on a connection that is gone. */
  lost = false
}

/** Subscribes for as long as the scope lives; returns once Redis has confirmed it. */
export type Subscribe = (
  channel: string,
  onMessage: (message: string) => void,
  onGap: () => void
) => Effect.Effect<void, Unavailable, Scope.Scope>

export interface RedisSubscriber {
  readonly subscribe: Subscribe
  /** Whether the channel is subscribed here, and not yet again after its connection was lost. */
  readonly isLost: (channel: string) => boolean
  /** Whether somebody waits for a confirmation. */
  readonly isAwaited: () => boolean
  /** To be called with every change of the link's readiness. */
  readonly onReady: () => void
  readonly onDown: () => void
  readonly onClosed: () => void
}

export const make = (options: {
  readonly link: () => Link<Redis>
  readonly timers: Timers
  readonly timeout: number
  /** Called when channels are lost no longer: confirmed again, or left. */
  readonly onFound: () => void
  /** Called when Redis refuses channels, once for every connection. */
  readonly onRefused: (error: unknown) => void
}): RedisSubscriber => {
  const { timeout, timers } = options
  const channels = new Map<string, Channel>()
  let waiters = 0

  const tell = (subscriber: Subscriber) => {
    if (!subscriber.gap) return
    subscriber.gap = false
    subscriber.onGap()
  }

  const confirm = (channel: Channel) => {
    channel.confirmed = true
    channel.lost = false
    for (const subscriber of channel.subscribers) {
      tell(subscriber)
      subscriber.waiting?.(Effect.void)
    }
  }

  /** Why Redis refused channels, if that was its answer. */
  let refusal: unknown
  const refused = new Set<string>()
  /** Redis refuses all for one of them, and not for ever: each is asked for alone, until whoever waits gives up. */
  const again = new Call(() => {
    const names = [...refused]
    refused.clear()
    if (options.link().isReady()) for (const name of names) if (channels.get(name)?.confirmed === false) send([name])
  })

  const send = (names: ReadonlyArray<string>) => {
    const { client } = options.link()
    // Those who join while it is on its way are confirmed with it; a channel made anew meanwhile has its own.
    const asked = names.map((name) => channels.get(name))
    client.call("subscribe", [...names]).then(
      () => {
        for (const channel of asked) if (channel !== undefined) confirm(channel)
        options.onFound()
      },
      (error) => {
        // Lost with the connection: asked again when it is back.
        if (!(error instanceof Error && error.name === "ReplyError")) return
        const isFirst = refusal === undefined
        refusal = withoutArguments(error)
        if (isFirst) options.onRefused(refusal)
        for (const name of names) refused.add(name)
        if (!again.pending) timers.start(again, timers.now() + timeout / 5)
      }
    )
  }

  const onMessage = (name: string, message: string) => {
    const channel = channels.get(name)
    if (channel === undefined) return
    for (const subscriber of channel.subscribers) {
      tell(subscriber)
      subscriber.onMessage(message)
    }
  }

  let listening = false
  const listen = () => {
    if (listening) return
    listening = true
    options.link().client.on("message", onMessage)
  }

  const join = (name: string, subscriber: Subscriber) => {
    listen()
    const { isReady } = options.link()
    let channel = channels.get(name)
    if (channel === undefined) {
      channel = new Channel()
      channels.set(name, channel)
      if (isReady()) send([name])
    }
    channel.subscribers.add(subscriber)
    return channel
  }

  const leave = (name: string, subscriber: Subscriber) => {
    const channel = channels.get(name)
    if (channel === undefined || !channel.subscribers.delete(subscriber) || channel.subscribers.size > 0) return
    channels.delete(name)
    const { client, isReady } = options.link()
    if (isReady()) client.unsubscribe(name).catch(() => undefined)
    if (channel.lost) options.onFound()
  }

  return {
    subscribe: (name, onMessage, onGap) =>
      Effect.acquireRelease(
        Effect.callback<Subscriber, Unavailable>((resume) => {
          const subscriber: Subscriber = { onMessage, onGap, gap: false, waiting: undefined }
          const channel = join(name, subscriber)
          if (channel.confirmed) return resume(Exit.succeed(subscriber))
          const { connect, lastError, state } = options.link()
          const stop = () => {
            if (subscriber.waiting === undefined) return
            subscriber.waiting = undefined
            waiters--
            timers.cancel(timer)
          }
          const end = (result: Effect.Effect<Subscriber, Unavailable>) => {
            stop()
            resume(result)
          }
          const giveUp = (detail: string, cause: unknown) => {
            leave(name, subscriber)
            end(Effect.fail(unavailable(detail, cause)))
          }
          const timer = timers.at(timers.now() + timeout, () => {
            const cause = lastError() ?? refusal
            giveUp(`not subscribed within ${timeout} ms${cause === undefined ? "" : ` (${reasonOf(cause)})`}`, cause)
          })
          subscriber.waiting = (result) => end(Effect.as(result, subscriber))
          waiters++
          if (state() === "closed") giveUp("the connection is closed", lastError())
          else connect()
          return Effect.sync(() => {
            stop()
            leave(name, subscriber)
          })
        }),
        (subscriber) => Effect.sync(() => leave(name, subscriber)),
        { interruptible: true }
      ).pipe(Effect.asVoid),
    isLost: (name) => channels.get(name)?.lost === true && options.link().state() !== "closed",
    isAwaited: () => waiters > 0,
    onReady: () => {
      refusal = undefined
      refused.clear()
      if (channels.size > 0) send([...channels.keys()])
    },
    onDown: () => {
      for (const channel of channels.values()) {
        if (!channel.confirmed) continue
        channel.confirmed = false
        channel.lost = true
        for (const subscriber of channel.subscribers) subscriber.gap = true
      }
    },
    onClosed: () => {
      for (const channel of channels.values()) {
        for (const { waiting } of channel.subscribers) waiting?.(Effect.fail(unavailable("the connection is closed")))
      }
    }
  }
}
