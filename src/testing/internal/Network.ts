/** How broadcasts travel: at once and in order, unless a policy says otherwise. */
import * as Duration from "effect/Duration"
import type { Timers } from "../../services/internal/Timers.ts"
import type { Prng } from "./Prng.ts"

/**
 * How the messages of a channel travel. Chances are from 0 to 1, and 0 by default.
 *
 * @since 0.2.0
 */
export interface Policy {
  /** How long a message takes. Default 0. */
  readonly delay?: Duration.Input | undefined
  /** How much longer it may take, at random; order is kept. Default 0. */
  readonly jitter?: Duration.Input | undefined
  /** The chance that a receiver never gets a message. */
  readonly loss?: number | undefined
  /** The chance that a receiver gets a message twice. */
  readonly duplication?: number | undefined
  /** The chance that a message is held, so that later ones overtake it. */
  readonly reordering?: number | undefined
}

/** How long a message is held that others are to overtake, where there is no delay to double. */
const overtaking = 100

export class Network {
  /** By channel; `undefined` is for all that have none of their own. */
  private readonly policies = new Map<string | undefined, Policy>()
  /** When the last message of a publisher arrives on a channel of a receiver: those after it arrive no earlier. */
  private readonly lastDue = new Map<string, number>()
  private readonly timers: Timers
  private readonly random: Prng

  constructor(timers: Timers, random: Prng) {
    this.timers = timers
    this.random = random
  }

  set(channel: string | undefined, policy: Policy | undefined): void {
    if (policy === undefined) this.policies.delete(channel)
    else this.policies.set(channel, policy)
  }

  clear(): void {
    this.policies.clear()
  }

  send(route: { readonly channel: string; readonly from: string; readonly to: string }, deliver: () => void): boolean {
    const policy = this.policies.get(route.channel) ?? this.policies.get(undefined)
    if (policy === undefined && this.lastDue.size === 0) {
      deliver()
      return true
    }
    if (this.random.chance(policy?.loss ?? 0)) return false
    this.schedule(route, policy, deliver)
    if (this.random.chance(policy?.duplication ?? 0)) this.schedule(route, policy, deliver)
    return true
  }

  private schedule(
    { channel, from, to }: { readonly channel: string; readonly from: string; readonly to: string },
    policy: Policy | undefined,
    deliver: () => void
  ): void {
    const now = this.timers.now()
    const delay = this.delayOf(policy)
    const path = `${channel}\n${from}\n${to}`
    if (this.random.chance(policy?.reordering ?? 0)) {
      this.timers.at(now + 2 * delay + overtaking, deliver)
      return
    }
    const due = Math.max(now + delay, this.lastDue.get(path) ?? 0)
    if (due <= now) {
      deliver()
      return
    }
    this.lastDue.set(path, due)
    this.timers.at(due, () => {
      if (this.lastDue.get(path) === due) this.lastDue.delete(path)
      deliver()
    })
  }

  private delayOf(policy: Policy | undefined): number {
    const jitter = millis(policy?.jitter)
    return millis(policy?.delay) + (jitter === 0 ? 0 : this.random.between(0, jitter))
  }
}

const millis = (input: Duration.Input | undefined): number =>
  input === undefined ? 0 : Duration.toMillis(Duration.fromInputUnsafe(input))
