/**
 * What a simulation holds a cluster to.
 *
 * Those for the primitives are ready-made: {@link oneHolder}, {@link fencesIncrease}, {@link noJobLost},
 * {@link noJobDoneTwice}, {@link messagesInOrder}, and together {@link primitives}. For a plugin there are {@link always},
 * {@link eventually} and {@link converges}.
 *
 * @since 0.2.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { getOrMake } from "../services/internal/getOrMake.ts"
import type { Observation } from "./Observation.ts"
import type { TestCluster } from "./TestCluster.ts"

/**
 * Something that is to hold, made anew for every run.
 *
 * @since 0.2.0
 */
export interface Invariant<R = never> {
  readonly name: string
  /** `now` tells the virtual time in milliseconds. */
  readonly watch: (cluster: TestCluster, now: () => number) => Watch<R>
}

/**
 * How one run is watched. What is wrong is a text.
 *
 * @since 0.2.0
 */
export interface Watch<R = never> {
  /** Told everything that happens. */
  readonly observe?: ((observation: Observation) => string | undefined) | undefined
  /** Asked whenever something has happened and all is quiet again. */
  readonly check?: (() => string | undefined) | undefined
  /** Run whenever `check` is; wrong when it fails or dies. One that waits is given up, and counts for nothing. */
  readonly always?: Effect.Effect<unknown, unknown, R> | undefined
  /** Tried when every fault has ended, until it succeeds. */
  readonly eventually?: Effect.Effect<unknown, unknown, R> | undefined
  /** In milliseconds, for how long. */
  readonly within?: number | undefined
}

/**
 * Holds at any time: an effect that fails, or dies of an assertion, when it does not. It must not wait, so
 * it looks at instances that run, and at what they share.
 *
 * @since 0.2.0
 */
export const always = <R>(
  name: string,
  check: (cluster: TestCluster) => Effect.Effect<unknown, unknown, R>
): Invariant<R> => ({ name, watch: (cluster) => ({ always: check(cluster) }) })

/**
 * Holds within a time (default 5 minutes) after every fault has ended.
 *
 * @since 0.2.0
 */
export const eventually = <R>(
  name: string,
  check: (cluster: TestCluster) => Effect.Effect<unknown, unknown, R>,
  options: { readonly within?: Duration.Input | undefined } = {}
): Invariant<R> => ({
  name,
  watch: (cluster) => ({
    eventually: check(cluster),
    within: Duration.toMillis(Duration.fromInputUnsafe(options.within ?? "5 minutes"))
  })
})

/**
 * The instances come to agree: within a time (default 5 minutes) after every fault has ended, the effect answers the
 * same on each of them, compared as JSON.
 *
 * @since 0.2.0
 */
export const converges = <A, E, R>(
  name: string,
  read: Effect.Effect<A, E, R>,
  options: { readonly within?: Duration.Input | undefined } = {}
): Invariant<R> =>
  eventually(
    name,
    (cluster) =>
      Effect.forEach(
        Array.from({ length: cluster.size }, (_, i) => i),
        (i) => cluster.on(i, read)
      ).pipe(
        Effect.flatMap((values) => {
          const texts = values.map((value) => JSON.stringify(value))
          return texts.every((text) => text === texts[0])
            ? Effect.void
            : Effect.fail(new Error(texts.map((text, i) => `${i}: ${text}`).join("; ")))
        })
      ) as Effect.Effect<void, unknown, R>,
    options
  )

/** An instance at one of its starts. */
interface Who {
  readonly instance: number
  readonly id: string
}

/** Whether it runs at this moment: one that is frozen does not know what time it is, and does nothing. */
const runs = (cluster: TestCluster, { id, instance }: Who): boolean =>
  cluster.id(instance) === id && cluster.state(instance) === "running"

/**
 * No lock is held by two: of the instances that run, at most one has a lease of a key that has not ended for it, and
 * at most one runs work under it with `Lock.runExclusive` and was not told to stop.
 *
 * @since 0.2.0
 */
export const oneHolder: Invariant = {
  name: "one holder per lock",
  watch: (cluster, now) => {
    type Held = Who & { readonly fence: number; until: number }
    const leases = new Map<string, Array<Held>>()
    const work = new Map<string, Array<Held>>()
    const touched = new Set<string>()
    const put = (map: Map<string, Array<Held>>, key: string, held: Held) => {
      const others = map.get(key)?.filter((other) => cluster.id(other.instance) === other.id) ?? []
      map.set(key, [...others, held])
    }
    const drop = (map: Map<string, Array<Held>>, key: string, fence: number) => {
      const rest = map.get(key)?.filter((held) => held.fence !== fence) ?? []
      if (rest.length === 0) map.delete(key)
      else map.set(key, rest)
    }
    const two = (key: string, kind: string, held: ReadonlyArray<Held>) =>
      held.length < 2
        ? undefined
        : `"${key}" ${kind} by ${held.map(({ fence, instance }) => `${instance} (fence ${fence})`).join(" and ")}`

    return {
      observe: (observation) => {
        const { instance } = observation
        const who = { instance, id: cluster.id(instance) }
        switch (observation._tag) {
          case "Granted":
            put(leases, observation.key, { ...who, fence: observation.fence, until: observation.until })
            break
          case "Renewed": {
            const held = leases.get(observation.key)?.find(({ fence }) => fence === observation.fence)
            if (!observation.accepted) drop(leases, observation.key, observation.fence)
            else if (held !== undefined) held.until = observation.until
            break
          }
          case "Released":
            drop(leases, observation.key, observation.fence)
            break
          case "Entered":
            put(work, observation.key, { ...who, fence: observation.fence, until: Number.POSITIVE_INFINITY })
            break
          case "LeaseLost":
          case "Left":
            drop(work, observation.key, observation.fence)
            break
          default:
            return undefined
        }
        touched.add(observation.key)
        return undefined
      },
      check: () => {
        for (const key of touched) {
          const held = leases.get(key)?.filter((one) => one.until > now() && runs(cluster, one)) ?? []
          const working = work.get(key)?.filter((one) => runs(cluster, one)) ?? []
          const wrong = two(key, "is held", held) ?? two(key, "is worked under", working)
          if (wrong !== undefined) return wrong
          if (held.length + working.length === 0 && !leases.has(key) && !work.has(key)) touched.delete(key)
        }
        return undefined
      }
    }
  }
}

/**
 * Every grant of a key has a higher fence than those before. (One that is heard of only when it has ended may be
 * heard of late.)
 *
 * @since 0.2.0
 */
export const fencesIncrease: Invariant = {
  name: "fences increase",
  watch: (_, now) => {
    const highest = new Map<string, number>()
    return {
      observe: (observation) => {
        if (observation._tag !== "Granted") return undefined
        const { fence, key, until } = observation
        const last = highest.get(key) ?? Number.NEGATIVE_INFINITY
        if (fence > last) highest.set(key, fence)
        else if (fence === last || until > now()) return `"${key}" is granted with fence ${fence} after ${last}`
        return undefined
      }
    }
  }
}

/** Which jobs have come to their end, as far as the queue has said. */
const ledger = (cluster: TestCluster) => {
  let count = 0
  /** When each was last asked for, given out, and over. */
  const asked = new Map<string, number>()
  const taken = new Map<string, number>()
  const ended = new Map<string, number>()
  const isSince = (what: Map<string, number>, job: string) => (what.get(job) ?? -1) > (asked.get(job) ?? -1)
  const buried = new Set<string>()
  /** What has been asked for and not answered: it may come about at any time, unless who asked is down. */
  const open = new Map<string, ReadonlyArray<Who>>()
  const isOpen = (what: string) =>
    open.get(what)?.some((who) => cluster.id(who.instance) === who.id && !isDown(cluster.state(who.instance))) ?? false
  const ask = (what: string, { instance }: Observation) =>
    open.set(what, [...(open.get(what) ?? []), { instance, id: cluster.id(instance) }])
  const answer = (what: string, { instance }: Observation) => {
    const others = [...(open.get(what) ?? [])]
    const place = others.findIndex((who) => who.instance === instance && who.id === cluster.id(instance))
    others.splice(place, place < 0 ? 0 : 1)
    if (others.length === 0) open.delete(what)
    else open.set(what, others)
  }
  return {
    isEnded: (job: string) =>
      isSince(ended, job) && !isOpen(`publish ${job}`) && !(buried.has(job) && isOpen("redrive")),
    note: (observation: Observation): void => {
      count++
      switch (observation._tag) {
        case "Publishing":
          ask(`publish ${jobOf(observation)}`, observation)
          asked.set(jobOf(observation), count)
          break
        case "Published":
          answer(`publish ${jobOf(observation)}`, observation)
          // What ended meanwhile was another of this id, unless one was taken meanwhile.
          if (observation.accepted !== false && !isSince(taken, jobOf(observation)))
            asked.set(jobOf(observation), count)
          break
        case "Redriving":
          ask("redrive", observation)
          for (const job of buried) asked.set(job, count)
          break
        case "Redriven":
          answer("redrive", observation)
          // What was buried since it was asked for may have been among them.
          for (const job of buried) asked.set(job, count)
          break
        case "Taken":
          taken.set(jobOf(observation), count)
          break
        case "Settled":
          if (!observation.accepted || observation.outcome === "retry" || observation.outcome === "release") break
          ended.set(jobOf(observation), count)
          if (observation.outcome === "bury") buried.add(jobOf(observation))
          else buried.delete(jobOf(observation))
      }
    }
  }
}

const isDown = (state: ReturnType<TestCluster["state"]>): boolean => state === "stopped" || state === "crashed"

const jobOf = ({ channel, id }: { readonly channel: string; readonly id: string }) => `${channel} ${id}`

/**
 * A job that the queue has taken in is there until it is done or discarded: ready, delayed, in flight or dead.
 *
 * @since 0.2.0
 */
export const noJobLost: Invariant = {
  name: "no job is lost",
  watch: (cluster) => {
    const acked = new Set<string>()
    const owed = new Map<string, { readonly channel: string; readonly id: string }>()
    let isDue = false
    return {
      observe: (observation) => {
        switch (observation._tag) {
          case "Publishing":
            // A job of this id that comes to its end from now on may be this one.
            acked.delete(jobOf(observation))
            return undefined
          case "Published":
            if (observation.accepted && !acked.has(jobOf(observation))) owed.set(jobOf(observation), observation)
            break
          case "Settled":
            if (observation.accepted && observation.outcome === "ack") {
              acked.add(jobOf(observation))
              owed.delete(jobOf(observation))
            }
            break
          case "Discarded":
            // Whichever of them were dead.
            for (const [job, { channel, id }] of owed) {
              const isMeant = observation.ids === "all" || observation.ids.includes(id)
              if (channel === observation.channel && isMeant) owed.delete(job)
            }
            break
          default:
            return undefined
        }
        isDue = true
        return undefined
      },
      always: Effect.suspend(() => {
        if (!isDue) return Effect.void
        isDue = false
        return Effect.flatMap(cluster.jobs(), (jobs) => {
          const there = new Set(jobs.map(jobOf))
          const lost = [...owed.keys()].find((job) => !there.has(job))
          return lost === undefined ? Effect.void : Effect.fail(new Error(`${lost} is gone and was not done`))
        })
      })
    }
  }
}

/**
 * A job that was settled as done, or as a dead letter, is not given out again and not settled again, unless it is published or
 * redriven again.
 *
 * @since 0.2.0
 */
export const noJobDoneTwice: Invariant = {
  name: "no job is done twice",
  watch: (cluster) => {
    const { isEnded, note } = ledger(cluster)
    return {
      observe: (observation) => {
        const isAgain =
          observation._tag === "Taken" || (observation._tag === "Settled" && observation.accepted)
            ? isEnded(jobOf(observation))
            : false
        note(observation)
        return isAgain && (observation._tag === "Taken" || observation._tag === "Settled")
          ? `${jobOf(observation)} has ended, and is ${observation._tag === "Taken" ? "taken" : "settled"} again`
          : undefined
      }
    }
  }
}

/**
 * The messages of a publisher arrive in order, and each at most once. Not for runs with the faults `duplication` and
 * `reordering`.
 *
 * @since 0.2.0
 */
export const messagesInOrder: Invariant = {
  name: "messages arrive in order, at most once",
  watch: (cluster) => {
    /** When a broadcast was asked for, and when that was answered. */
    type Sent = { readonly text: string; readonly number: number; readonly began: number; ended: number }
    const sent = new Map<string, Array<Sent>>()
    const heard = new Map<string, { readonly which: Set<Sent>; latest: number }>()
    let count = 0
    return {
      observe: (observation) => {
        count++
        const { instance } = observation
        if (observation._tag === "Broadcast") {
          const text = JSON.stringify(observation.message)
          const broadcast = { text, number: observation.number, began: count, ended: Number.POSITIVE_INFINITY }
          getOrMake(sent, `${observation.channel} of ${cluster.id(instance)}`, () => []).push(broadcast)
        } else if (observation._tag === "Sent") {
          const path = `${observation.channel} of ${cluster.id(instance)}`
          const broadcast = sent.get(path)?.findLast(({ number }) => number === observation.number)
          if (broadcast !== undefined) broadcast.ended = count
        } else if (observation._tag === "Delivered") {
          const path = `${observation.channel} of ${observation.from}`
          const receiver = `${path} on ${cluster.id(instance)}`
          const text = JSON.stringify(observation.message)
          const { latest, which } = getOrMake(heard, receiver, () => ({ which: new Set<Sent>(), latest: -1 }))
          // Those that were asked for at the same time may come in any order.
          const found = sent
            .get(path)
            ?.find((broadcast) => broadcast.text === text && broadcast.ended >= latest && !which.has(broadcast))
          if (found === undefined) return `${receiver}: ${text} comes twice, or out of order`
          which.add(found)
          heard.set(receiver, { which, latest: Math.max(latest, found.began) })
        }
        return undefined
      }
    }
  }
}

/**
 * The ready-made ones for the primitives.
 *
 * @since 0.2.0
 */
export const primitives: ReadonlyArray<Invariant> = [oneHolder, fencesIncrease, noJobLost, noJobDoneTwice]
