/**
 * The port that a broadcast backend implements.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Payload } from "./Payload.ts"
import type { Unavailable } from "./Reason.ts"

/**
 * A broadcast on its way.
 *
 * @since 0.1.0
 */
export interface Message {
  /** Id of the instance that published. */
  readonly from: string
  /** Whether the publisher's own subscribers get it as well. */
  readonly toSelf: boolean
  readonly payload: Payload
}

/**
 * What a backend promises:
 *
 * - When `subscribe` has returned, every message published to the channel by any
 *   instance reaches `onMessage`, until the scope closes. The publisher's own
 *   messages may come back: the service drops what is not meant for it.
 * - At most once; in order per publisher and channel.
 * - Whenever messages may have been missed, `onGap` is called, before any message
 *   that came after the gap.
 * - `subscribe` before the broker is reachable waits, or fails with `Unavailable`
 *   within a bound; a subscription made is re-established by itself.
 * - `onMessage` and `onGap` are quick, synchronous, and do not throw.
 *
 * Channels arrive prefixed with the app, and there is at most one subscription
 * per channel and instance at a time.
 *
 * As with every port, the service calls a function inside a running effect and
 * runs what it returns at once and once: a transport in memory may act in the
 * call and answer with an `Exit`.
 *
 * @since 0.1.0
 */
export class PubSubTransport extends Context.Service<
  PubSubTransport,
  {
    /** `"memory"`, `"redis"`, `"rabbitmq"`: names the backend in spans and errors. */
    readonly system: string
    readonly publish: (channel: string, message: Message) => Effect.Effect<void, Unavailable>
    readonly subscribe: (
      channel: string,
      onMessage: (message: Message) => void,
      onGap: () => void
    ) => Effect.Effect<void, Unavailable, Scope.Scope>
  }
>()("cohort/services/PubSubTransport") {}
