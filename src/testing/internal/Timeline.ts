/** What happened on each instance, side by side, for a person to read. */
import type { Observation } from "../Observation.ts"

interface Line {
  readonly at: number
  /** `undefined` for what concerns all. */
  readonly instance: number | undefined
  readonly text: string
}

const widest = 44

export class Timeline {
  private readonly lines: Array<Line> = []
  private readonly instances: number

  constructor(instances: number) {
    this.instances = instances
  }

  add(at: number, instance: number | undefined, text: string): void {
    this.lines.push({ at, instance, text })
  }

  /** What is worth telling of an observation. */
  note(observation: Observation): void {
    const text = textOf(observation)
    if (text !== undefined) this.add(observation.at, observation.instance, text)
  }

  /** As a table, at most the last lines of it. */
  render(most = Number.POSITIVE_INFINITY): string {
    const left = Math.max(0, this.lines.length - most)
    const lines = left === 0 ? this.lines : this.lines.slice(left)
    const widths = Array.from({ length: this.instances }, (_, i) =>
      Math.min(widest, Math.max(8, ...lines.filter(({ instance }) => instance === i).map(({ text }) => text.length)))
    )
    const row = (time: string, cells: ReadonlyArray<string>) =>
      [time.padStart(10), ...cells.map((cell, i) => cut(cell, widths[i]!).padEnd(widths[i]!))].join("  ").trimEnd()
    let last = ""
    const body = lines.map(({ at, instance, text }) => {
      const time = (at / 1_000).toFixed(3)
      const shown = time === last ? "" : time
      last = time
      return instance === undefined
        ? `${shown.padStart(10)}  -- ${text}`
        : row(
            shown,
            widths.map((_, i) => (i === instance ? text : ""))
          )
    })
    const head = row(
      "seconds",
      widths.map((_, i) => `${i}`)
    )
    return [head, ...(left > 0 ? [`${"".padStart(10)}  -- ${left} lines before`] : []), ...body].join("\n")
  }
}

const cut = (text: string, width: number): string => (text.length <= width ? text : `${text.slice(0, width - 1)}…`)

const shown = (message: unknown): string => cut(JSON.stringify(message) ?? "", 40)

/** Random ids are told apart by their beginning. */
const jobText = ({ channel, id }: { readonly channel: string; readonly id: string }): string =>
  `${channel} ${id.length === 36 ? id.slice(0, 8) : id}`

const textOf = (observation: Observation): string | undefined => {
  switch (observation._tag) {
    case "Granted":
      return `holds "${observation.key}" (fence ${observation.fence})`
    case "Renewed":
      return observation.accepted ? undefined : `may not renew "${observation.key}" (fence ${observation.fence})`
    case "Released":
      return `gives "${observation.key}" back (fence ${observation.fence})`
    case "LeaseLost":
      return `loses "${observation.key}" (fence ${observation.fence})`
    case "Entered":
    case "Left":
      return undefined
    case "Publishing":
      return `queues ${jobText(observation)}`
    case "Published":
      return observation.accepted !== false ? undefined : `${jobText(observation)} is there already`
    case "Taken":
      return `takes ${jobText(observation)} (attempt ${observation.attempt})`
    case "Settled": {
      const job = `${jobText(observation)}`
      if (!observation.accepted) return `is too late to settle ${job}`
      switch (observation.outcome) {
        case "ack":
          return `has done ${job}`
        case "retry":
          return `is to retry ${job}`
        case "release":
          return `gives ${job} back`
        case "bury":
          return `buries ${job}`
      }
      return undefined
    }
    case "Redriven":
    case "Sent":
      return undefined
    case "Redriving":
      return `redrives ${observation.channel}`
    case "Discarded":
      return `discards ${observation.channel}`
    case "Stored":
      return `caches ${observation.cache} ${observation.keys?.join(" ")}`
    case "Removed":
      return observation.keys === undefined
        ? `empties ${observation.cache}`
        : `drops ${observation.cache} ${observation.keys.join(" ")}`
    case "Broadcast":
      return `sends ${observation.channel} ${shown(observation.message)}`
    case "Delivered":
      return `hears ${observation.channel} ${shown(observation.message)} of ${observation.from}`
    case "Lost":
      return `misses ${observation.channel} ${shown(observation.message)} of ${observation.from}`
    case "Gap":
      return `has a gap in ${observation.channel}`
    case "Refused":
      return `is refused ${observation.operation}, ${observation.when} it takes effect`
  }
}
