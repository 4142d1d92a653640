/** Looks once a second, and draws what it sees. */
import { chart } from "./chart.js"
import { $, clock, h, kept, seconds, table } from "./dom.js"
import { compare, isSilent, note } from "./events.js"
import * as letters from "./letters.js"
import { allow, onChange } from "./token.js"

const within = (id) => document.querySelector(`#${id} > div`)
let state
let before

const chartOf = kept((key) => chart(`${key} per second`))
const instances = table(
  within("instances"),
  "Instances",
  [
    ["Id", ({ id }) => (id === state.instance ? `${id} (this one)` : id), "code"],
    [
      "State",
      (member) =>
        isSilent(state, member) ? ["silent", "bad"] : member.ready === false ? ["not ready", "bad"] : ["alive", "good"]
    ],
    ["Version", ({ version }) => version],
    ["Worker mode", ({ workerMode }) => workerMode || "everything"],
    ["Plugins", ({ plugins }) => plugins.join(", ")],
    ["Attempts ended/s", ({ id }) => chartOf(`${id} attempts`).element],
    ["Up", ({ startedAt }) => seconds(state.at - startedAt), "number"],
    ["Last seen", ({ lastSeen }) => `${seconds(state.at - lastSeen)} ago`, "number"]
  ],
  ({ id }) => id,
  "None"
)

const depth = (name) => [({ depth }) => (depth.error ? ["?", "bad"] : depth.value[name]), "number"]
const inspect = kept((channel) =>
  h(
    "button",
    { click: () => letters.inspect(channel), "aria-label": `Inspect the dead letters of ${channel}` },
    "Inspect"
  )
)
const channels = table(
  within("channels"),
  "Channels",
  [
    ["Channel", ({ channel }) => channel, "code"],
    ["Ready", ...depth("ready")],
    ["Delayed", ...depth("delayed")],
    ["In flight", ...depth("inFlight")],
    [
      "Dead",
      ({ depth }) => (depth.error ? ["?", "bad"] : [depth.value.dead, depth.value.dead > 0 ? "bad" : ""]),
      "number"
    ],
    [
      "Served by",
      ({ depth, servedBy }) =>
        depth.error
          ? [depth.error, "bad"]
          : servedBy.length > 0
            ? servedBy.join(", ")
            : ["nobody", depth.value.ready > 0 ? "bad" : "warn"]
    ],
    ["Published/s", ({ channel }) => chartOf(`${channel} published`).element],
    ["Attempts ended/s", ({ channel }) => chartOf(`${channel} ended`).element],
    ["", ({ channel, depth }) => (depth.value?.dead > 0 ? inspect(channel) : "")]
  ],
  ({ channel }) => channel,
  "None was used yet"
)

const locks = table(
  within("locks"),
  "Locks",
  [
    ["Key", ({ key }) => key, "code"],
    [
      "Holder",
      ({ holder }) => (state.members.some(({ id }) => id === holder) ? holder : [`${holder} (no member)`, "warn"])
    ],
    ["Fence", ({ fence }) => fence, "number"],
    ["Ends within", ({ ttl }) => seconds(ttl), "number"],
    [
      "Waiters",
      ({ waiters }) =>
        waiters.map(({ count, instance }) => (count === 1 ? instance : `${instance} (${count})`)).join(", ")
    ]
  ],
  ({ key }) => key,
  "No lock is held"
)

const caches = table(
  within("caches"),
  "Caches",
  [
    ["Cache", ({ name }) => name, "code"],
    ["Hits", ({ hits }) => hits, "number"],
    ["Misses", ({ misses }) => misses, "number"],
    [
      "Hit rate",
      ({ hits, misses }) => (hits + misses === 0 ? "–" : `${((100 * hits) / (hits + misses)).toFixed(1)} %`),
      "number"
    ],
    ["Look-ups/s", ({ name }) => chartOf(`${name} look-ups`).element]
  ],
  ({ name }) => name,
  "None was asked yet"
)

const resyncOf = ({ instance, resync: { failures, lastError, since } }) =>
  failures > 0
    ? `resync of ${instance} fails since ${clock(since)} (${failures}×): ${lastError ?? ""}`
    : `resync of ${instance} since ${clock(since)}`
const sync = table(
  within("sync"),
  "Sync channels",
  [
    ["Channel", ({ channel }) => channel, "code"],
    ["Sent", ({ instances }) => instances.reduce((sum, { sent }) => sum + sent, 0), "number"],
    [
      "Behind",
      ({ instances }) => {
        const late = instances.filter(({ behind }) => behind > 0)
        return late.length === 0
          ? "nobody"
          : [late.map(({ behind, instance }) => `${instance} by ${behind}`).join(", "), "warn"]
      }
    ],
    [
      "State",
      ({ instances }) => {
        const missing = instances.filter(({ resync }) => resync !== null)
        return missing.length === 0
          ? ["in sync", "good"]
          : [missing.map(resyncOf).join("; "), missing.some(({ resync }) => resync.failures > 0) ? "bad" : "warn"]
      }
    ]
  ],
  ({ channel }) => channel,
  "None"
)

/** From best to worst. */
const statuses = ["up", "degraded", "down", "failed"]
const worstOf = (findings) => {
  const worst = Math.max(...findings.map(({ status }) => statuses.indexOf(status)))
  return findings.filter(({ status }) => statuses.indexOf(status) === worst)
}
const health = table(
  within("health"),
  "Health",
  [
    ["Component", ({ component }) => component, "code"],
    [
      "Status",
      ({ findings }) => {
        const worst = worstOf(findings)
        const [{ status }] = worst
        return [
          worst.length === findings.length ? status : `${status} on ${worst.length} of ${findings.length}`,
          status
        ]
      }
    ],
    [
      "Why",
      ({ findings }) =>
        findings
          .filter(({ status }) => status !== "up")
          .map(({ detail, instance, status }) => `${instance} ${status}${detail ? `: ${detail}` : ""}`)
          .join("; ")
    ]
  ],
  ({ component }) => component,
  "No component has a check"
)

const tileOf = kept((name) => h("li", {}, h("b"), name))
const tile = (name, value, kind = "") => {
  const element = tileOf(name)
  if (element.firstChild.textContent !== String(value)) element.firstChild.textContent = String(value)
  element.className = kind
  if (element.parentNode === null) $("tiles").append(element)
}

const draw = () => {
  $("app").textContent = state.app
  document.title = `${state.app} – Cohort`
  $("whose").textContent = `as instance ${state.instance} sees it`
  for (const { attempts, id } of state.members) chartOf(`${id} attempts`).add(attempts)
  for (const { channel, consumedRate, sentRate } of state.channels) {
    chartOf(`${channel} published`).add(sentRate)
    chartOf(`${channel} ended`).add(consumedRate)
  }
  for (const { name, rate } of state.caches) chartOf(`${name} look-ups`).add(rate)
  instances(state.members)
  channels(state.channels)
  locks(state.locks.value ?? [])
  caches(state.caches)
  sync(state.sync)
  health(state.health)
  letters.update(state.channels)

  const sum = (name) => state.channels.reduce((total, { depth }) => total + (depth.value?.[name] ?? 0), 0)
  const ready = state.members.filter((member) => member.ready !== false && !isSilent(state, member)).length
  tile(
    "instances ready",
    ready === state.members.length ? ready : `${ready} of ${state.members.length}`,
    ready < state.members.length ? "bad" : "good"
  )
  tile("jobs ready", sum("ready"))
  tile("jobs in flight", sum("inFlight"))
  tile("dead letters", sum("dead"), sum("dead") > 0 ? "bad" : "")
  tile("locks held", state.locks.error ? "?" : state.locks.value.length, state.locks.error ? "bad" : "")
  tile("alarms", state.alarms.length, state.alarms.length > 0 ? "bad" : "")
}

const connection = (text, kind) => {
  if ($("connection").textContent === text) return
  $("connection").textContent = text
  $("connection").className = `chip ${kind}`
}

const look = async () => {
  try {
    const response = await fetch("console/api/state", { signal: AbortSignal.timeout(8_000) })
    if (!response.ok) throw new Error(`status ${response.status}`)
    before = state
    state = await response.json()
    allow(state.actions)
    compare(before, state)
    draw()
    connection("live", "good")
  } catch (error) {
    if ($("connection").textContent !== "no answer") note(`the instance does not answer: ${error.message}`, "bad")
    connection("no answer", "bad")
  }
  setTimeout(look, 1_000)
}

onChange(letters.redraw)
look()
