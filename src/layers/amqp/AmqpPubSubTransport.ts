/**
 * Broadcast through a RabbitMQ exchange.
 *
 * Every instance has one queue, which goes with its connection, and a binding for each
 * channel that it subscribes to. A message that had left when a connection was lost is
 * not sent again: at most once. One to the publisher's own instance as well waits for
 * its queue, if that was lost; and those that it publishes later to the channel wait behind it.
 *
 * @since 0.2.0
 */
import type { Channel as AmqpChannel } from "amqplib"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Payload } from "../../services/Payload.ts"
import { type Message, PubSubTransport } from "../../services/PubSubTransport.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { AmqpConnection, type Topology } from "./AmqpConnection.ts"
import { unavailable } from "./AmqpLink.ts"
import type { Session, Sessions } from "./AmqpSession.ts"
import { shortName } from "./names.ts"

const exchange = "cohort.pubsub.v1"

/** Routing keys are whole channel names, whatever characters they hold: a direct exchange compares them as they are. */
const topology: Topology = {
  declare: (channel: AmqpChannel) => channel.assertExchange(exchange, "direct", { durable: true })
}

interface Subscriber {
  readonly onMessage: (message: Message) => void
  readonly onGap: () => void
  /** Whether something may have been missed since it was last told. */
  gap: boolean
}

/** The port promises one subscription per channel at a time, but one may begin before the last has ended. */
interface Channel {
  readonly subscribers: Set<Subscriber>
  /** Resolves to the session that has the binding. */
  binding: { readonly session: Session; readonly done: Promise<void>; confirmed: boolean } | undefined
  /** Whether it was bound once, on a session that is over. */
  lost: boolean
}

/**
 * Makes the transport.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<PubSubTransport["Service"], never, AmqpConnection | Scope.Scope> = Effect.gen(
  function* () {
    const amqp = yield* AmqpConnection
    const scope = yield* Effect.scope
    const channels = new Map<string, Channel>()
    let queue = ""

    const tell = (subscriber: Subscriber) => {
      if (!subscriber.gap) return
      subscriber.gap = false
      subscriber.onGap()
    }

    const onDelivery = (routingKey: string, content: Buffer) => {
      const channel = channels.get(routingKey)
      if (channel === undefined) return
      const message = read(content.toString("utf8"))
      if (message === undefined) return
      for (const subscriber of channel.subscribers) {
        tell(subscriber)
        subscriber.onMessage(message)
      }
    }

    const bind = (session: Session, name: string, channel: Channel): Promise<void> => {
      const done = session.channel.bindQueue(queue, exchange, name).then(() => {
        binding.confirmed = true
        channel.lost = false
        for (const subscriber of channel.subscribers) tell(subscriber)
      })
      const binding = { session, done, confirmed: false }
      channel.binding = binding
      return done
    }

    const setup = async (session: Session) => {
      const { channel } = session
      await topology.declare(channel)
      // A name of RabbitMQ's: one of ours may be taken by our last connection, as long as RabbitMQ believes in it.
      const declared = await channel.assertQueue("", {
        exclusive: true,
        durable: false,
        autoDelete: true,
        arguments: { "x-queue-type": "classic" }
      })
      queue = declared.queue
      // Its deliveries go through the callback in order, so no message overtakes a gap.
      await session.consume(queue, ({ content, fields }) => onDelivery(fields.routingKey, content), { noAck: true })
      await Promise.all([...channels].map(([name, channel]) => bind(session, name, channel)))
    }

    const onDown = () => {
      for (const channel of channels.values()) {
        if (channel.binding?.confirmed) {
          channel.lost = true
          for (const subscriber of channel.subscribers) subscriber.gap = true
        }
        channel.binding = undefined
      }
    }

    // Opened by the first subscription, and kept: most instances subscribe to something all the time.
    let sessions: Sessions | undefined
    const open = Effect.suspend(() =>
      sessions !== undefined
        ? Effect.succeed(sessions)
        : Effect.tap(amqp.open({ setup, onUp: amqp.dispatchHeld, onDown }).pipe(Scope.provide(scope)), (opened) => {
            sessions = opened
            return Effect.void
          })
    )

    const leave = (name: string, channel: Channel, subscriber: Subscriber) => {
      if (!channel.subscribers.delete(subscriber) || channel.subscribers.size > 0) return
      channels.delete(name)
      const session = channel.binding?.session
      if (session !== undefined && !session.over) {
        session.channel.unbindQueue(queue, exchange, name).catch(() => undefined)
      }
      if (channel.lost) amqp.dispatchHeld()
    }

    /** Waits until the channel is bound to the queue of the session that is up. */
    const bound = (name: string, channel: Channel): Effect.Effect<void, Unavailable> =>
      Effect.gen(function* () {
        const { current, ready } = yield* open
        while (true) {
          const session = yield* ready
          const binding = channel.binding
          if (binding?.session === session && binding.confirmed) return
          const done = binding?.session === session ? binding.done : bind(session, name, channel)
          const error = yield* Effect.promise(() =>
            done.then(
              () => undefined,
              (error: unknown) => error ?? true
            )
          )
          if (error !== undefined && current() === session) session.abandon(error)
        }
      }).pipe(
        Effect.timeoutOrElse({
          duration: amqp.timeout,
          orElse: () => Effect.fail(unavailable(`not subscribed within ${amqp.timeout} ms`))
        })
      )

    return PubSubTransport.of({
      system: "rabbitmq",
      publish: (channel, message) => {
        const name = shortName(channel)
        return amqp
          .publish({
            exchange,
            routingKey: name,
            content: write(message),
            topology,
            order: name,
            isHeld: message.toSelf ? () => channels.get(name)?.lost === true : undefined
          })
          .pipe(Effect.asVoid)
      },
      subscribe: (channelName, onMessage, onGap) =>
        Effect.acquireRelease(
          Effect.suspend(() => {
            const name = shortName(channelName)
            const channel: Channel = channels.get(name) ?? { subscribers: new Set(), binding: undefined, lost: false }
            channels.set(name, channel)
            const subscriber: Subscriber = { onMessage, onGap, gap: false }
            channel.subscribers.add(subscriber)
            const undo = Effect.sync(() => leave(name, channel, subscriber))
            return Effect.as(
              Effect.onError(bound(name, channel), () => undo),
              undo
            )
          }),
          (undo) => undo,
          { interruptible: true }
        ).pipe(Effect.asVoid)
    })
  }
)

/** `1` or `0` (to self), the length of the publisher's id, a colon, the id, and the payload. */
const write = ({ from, payload, toSelf }: Message): Buffer =>
  Buffer.from(`${toSelf ? "1" : "0"}${from.length}:${from}${payload.json}`)

/** What is not a broadcast of ours is nobody's. */
const read = (text: string): Message | undefined => {
  const colon = text.indexOf(":")
  const length = Number(text.slice(1, colon))
  if (colon < 2 || !Number.isInteger(length)) return undefined
  const start = colon + 1
  return {
    toSelf: text.charCodeAt(0) === 49,
    from: text.slice(start, start + length),
    payload: Payload.fromJson(text.slice(start + length))
  }
}

/**
 * Provides `PubSubTransport`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<PubSubTransport, never, AmqpConnection> = Layer.effect(PubSubTransport, make)
