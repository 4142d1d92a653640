/**
 * A channel and what travels on it.
 *
 * @since 0.1.0
 */
import type * as Schema from "effect/Schema"
import * as Validate from "./internal/validate.ts"
import { type Wire, wire } from "./Payload.ts"
import type { InvalidInput } from "./Reason.ts"

/** Keeps the channels of what is built on broadcast apart from the users'. */
type Kind = "topic" | "sync" | "announcements" | "cache" | "members"

/**
 * A typed channel for {@link PubSub}. `RD` and `RE` are what its Schema requires
 * to decode and encode; most require nothing.
 *
 * @since 0.1.0
 */
export interface Topic<A, RD = never, RE = never> {
  readonly channel: string
  readonly kind: Kind
  readonly wire: Wire<A, RD, RE>
  /** Why the declaration cannot be used, if it cannot; reported by the first use. */
  readonly invalid: InvalidInput | undefined
}

/**
 * Declares a topic. Every instance of the app must declare it alike.
 *
 * @since 0.1.0
 */
export const make = <S extends Schema.Constraint>(
  channel: string,
  schema: S,
  /** @internal */
  kind: Kind = "topic"
): Topic<S["Type"], S["DecodingServices"], S["EncodingServices"]> => ({
  channel,
  kind,
  wire: wire(schema),
  invalid: Validate.name("channel", channel)
})
