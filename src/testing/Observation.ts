/**
 * What a simulated cluster saw happen at the ports of its instances.
 *
 * @since 0.2.0
 */
import type { Outcome } from "../services/EventQueueStore.ts"

/**
 * An operation of a store, as faults name it. Taking a lock is `lock.acquire`, whether it waits or not.
 *
 * @since 0.2.0
 */
export type Operation =
  | `cache.${"get" | "getMany" | "set" | "del" | "reset" | "keys" | "ttl" | "reserve" | "fill" | "abandon"}`
  | `lock.${"acquire" | "renew" | "release"}`
  | `pubsub.${"publish" | "subscribe"}`
  | `queue.${"publish" | "subscribe" | "take" | "renew" | "settle" | "depth" | "deadLetters" | "redrive" | "discard"}`

/**
 * A store, for faults of all its operations.
 *
 * @since 0.2.0
 */
export type StoreName = "cache" | "lock" | "pubsub" | "queue"

/**
 * One thing that happened, with the instance it happened on and the virtual time in milliseconds. Names are as the
 * author of a plugin gave them.
 *
 * - `Granted`, `Renewed`, `Released`: a lease as its holder sees it; `until` is when it ends for the holder.
 * - `Entered`, `LeaseLost`, `Left`: work under `Lock.runExclusive` began, was told to stop, and ended.
 * - `Publishing`, `Published`, `Taken`, `Settled`, `Redriving`, `Redriven`, `Discarded`: jobs. `accepted` is whether the
 *   queue took it so, `undefined` when it did not answer. A job may be taken, and done, between `Publishing` and `Published`.
 * - `Stored`, `Removed`: cache entries; `keys` is `undefined` when the whole cache was reset.
 * - `Broadcast`, `Sent`, `Delivered`, `Lost`, `Gap`: messages. `number` tells which broadcast was sent.
 * - `Refused`: a fault made an operation fail, `before` or `after` it took effect.
 *
 * @since 0.2.0
 */
export type Observation = { readonly at: number; readonly instance: number } & What

/**
 * @since 0.2.0
 */
export type What =
  | { readonly _tag: "Granted"; readonly key: string; readonly fence: number; readonly until: number }
  | {
      readonly _tag: "Renewed"
      readonly key: string
      readonly fence: number
      readonly until: number
      readonly accepted: boolean
    }
  | { readonly _tag: "Released"; readonly key: string; readonly fence: number }
  | { readonly _tag: "Entered" | "LeaseLost" | "Left"; readonly key: string; readonly fence: number }
  | { readonly _tag: "Publishing"; readonly channel: string; readonly id: string }
  | {
      readonly _tag: "Published"
      readonly channel: string
      readonly id: string
      readonly accepted: boolean | undefined
    }
  | { readonly _tag: "Taken"; readonly channel: string; readonly id: string; readonly attempt: number }
  | {
      readonly _tag: "Settled"
      readonly channel: string
      readonly id: string
      readonly attempt: number
      readonly outcome: Outcome["_tag"]
      readonly accepted: boolean
    }
  | {
      readonly _tag: "Redriving" | "Redriven" | "Discarded"
      readonly channel: string
      readonly ids: ReadonlyArray<string> | "all"
    }
  | { readonly _tag: "Stored" | "Removed"; readonly cache: string; readonly keys: ReadonlyArray<string> | undefined }
  | { readonly _tag: "Broadcast"; readonly channel: string; readonly message: unknown; readonly number: number }
  | { readonly _tag: "Sent"; readonly channel: string; readonly number: number }
  | { readonly _tag: "Delivered"; readonly channel: string; readonly from: string; readonly message: unknown }
  | { readonly _tag: "Lost"; readonly channel: string; readonly from: string; readonly message: unknown }
  | { readonly _tag: "Gap"; readonly channel: string }
  | { readonly _tag: "Refused"; readonly operation: Operation; readonly when: "before" | "after" }
