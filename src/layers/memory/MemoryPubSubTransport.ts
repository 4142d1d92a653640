/**
 * Broadcast in the memory of a {@link MemoryHub}.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Instance } from "../../services/Instance.ts"
import { type Message, PubSubTransport } from "../../services/PubSubTransport.ts"
import { type Link, MemoryHub } from "./MemoryHub.ts"

interface Subscription {
  readonly link: Link
  readonly onMessage: (message: Message) => void
  active: boolean
}

/**
 * Makes the transport of one instance.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<PubSubTransport["Service"], never, MemoryHub | Instance> = Effect.gen(function* () {
  const hub = yield* MemoryHub
  const link = hub.link((yield* Instance).id)
  // Lists are replaced, never changed: a message goes to those who were there when it was published.
  const channels = hub.part("pubsub", () => new Map<string, ReadonlyArray<Subscription>>())

  const send = (channel: string, message: Message): void => {
    const subscriptions = channels.get(channel)
    if (subscriptions === undefined) return
    hub.enqueue(() => {
      for (const subscription of subscriptions) {
        if (subscription.active && subscription.link.connected) subscription.onMessage(message)
      }
    })
  }

  return PubSubTransport.of({
    system: "memory",
    publish: (channel, message) => link.run(() => send(channel, message)),
    subscribe: (channel, onMessage, onGap) =>
      Effect.acquireRelease(
        link.run(() => {
          const subscription: Subscription = { link, onMessage, active: true }
          const others = channels.get(channel)?.filter(({ link }) => !link.crashed) ?? []
          channels.set(channel, [...others, subscription])
          return { subscription, unlisten: link.onReconnect(() => hub.enqueue(onGap)) }
        }),
        ({ subscription, unlisten }) =>
          Effect.sync(() => {
            subscription.active = false
            unlisten()
            const rest = channels.get(channel)?.filter((other) => other !== subscription) ?? []
            if (rest.length === 0) channels.delete(channel)
            else channels.set(channel, rest)
          }),
        { interruptible: true }
      ).pipe(Effect.asVoid)
  })
})

/**
 * Provides `PubSubTransport`.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<PubSubTransport, never, MemoryHub | Instance> = Layer.effect(PubSubTransport, make)
