/** What happened: told by what differs between one look and the next, and by what instances have logged. */
import { $, clock, h } from "./dom.js"

const kept = 200
/** The number of the last line of its log that was told, by instance. */
const logged = new Map()
const silent = new Set()

const tell = (at, text, kind = "") => {
  $("feed").prepend(h("li", { class: kind }, h("time", { datetime: new Date(at).toISOString() }, clock(at)), text))
  while ($("feed").children.length > kept) $("feed").lastChild.remove()
}
export const note = (text, kind) => tell(Date.now(), text, kind)

/** Whether an instance is late with telling that it is there. */
export const isSilent = (state, member) => state.at - member.lastSeen > 3_500

/** Calls with each of `now`, and with what it was before, if anything. */
const changes = (before, now, keyOf, each) => {
  const known = new Map(before.map((item) => [keyOf(item), item]))
  for (const item of now) each(item, known.get(keyOf(item)))
}

const ofInstances = (items, name, all) =>
  items.flatMap((item) => item[all].map((one) => ({ ...one, name: item[name] })))

export const compare = (before, now) => {
  if (before !== undefined && before.instance !== now.instance) {
    tell(now.at, `${now.instance} answers now, instead of ${before.instance}`, "warn")
  }
  const lines = now.members.flatMap(({ id, log }) => log.map((line) => ({ ...line, id })))
  for (const { about, at, id, level, number, text } of lines.sort((a, b) => a.at - b.at)) {
    if (number <= (logged.get(id) ?? 0)) continue
    logged.set(id, number)
    const where = about.includes(`instance ${id}`)
      ? about
      : [`instance ${id}`, ...(about === "" ? [] : [about])].join(", ")
    tell(at, `${text} (${where})`, level === "Warn" ? "warn" : "bad")
  }
  for (const member of now.members) {
    if (isSilent(now, member) === silent.has(member.id)) continue
    if (silent.delete(member.id)) tell(now.at, `instance ${member.id} is heard of again`, "good")
    else {
      silent.add(member.id)
      tell(now.at, `instance ${member.id} is silent`, "warn")
    }
  }
  if (before === undefined) return
  const ids = ({ id }) => id
  changes(now.members, before.members, ids, ({ id }, still) => {
    if (still !== undefined) return
    logged.delete(id)
    tell(now.at, `instance ${id} went${silent.has(id) ? " without a word" : ""}`, silent.delete(id) ? "bad" : "")
  })
  changes(before.members, now.members, ids, ({ gaps, id, leasesLost }, was) => {
    if (was === undefined) return tell(now.at, `instance ${id} came`, "good")
    if (gaps > was.gaps) tell(now.at, `instance ${id} may have missed broadcasts`, "warn")
    if (leasesLost > was.leasesLost) tell(now.at, `instance ${id} lost ${leasesLost - was.leasesLost} leases`, "warn")
  })
  changes(
    before.channels,
    now.channels,
    ({ channel }) => channel,
    ({ channel, depth }, was) => {
      const dead = depth.value?.dead
      const wasDead = was?.depth.value?.dead
      if (dead === undefined || wasDead === undefined || dead === wasDead) return
      if (dead > wasDead) tell(now.at, `${channel}: ${dead - wasDead} more dead`, "bad")
      else tell(now.at, `${channel}: ${wasDead - dead} dead fewer`)
    }
  )
  const alarm = ({ channel, kind }) => `${kind} ${channel}`
  changes(before.alarms, now.alarms, alarm, (one, was) => {
    if (was === undefined) tell(now.at, `alarm: ${one.channel} is ${one.kind} (${one.count})`, "bad")
  })
  changes(now.alarms, before.alarms, alarm, (one, still) => {
    if (still === undefined) tell(now.at, `no alarm any more: ${alarm(one)}`, "good")
  })
  const ofOne = ({ instance, name }) => `${name} ${instance}`
  const findings = (state) => ofInstances(state.health, "component", "findings")
  changes(findings(before), findings(now), ofOne, ({ detail, instance, name, status }, was) => {
    if (was?.status === status || (was === undefined && status === "up")) return
    tell(now.at, `${name} of ${instance} is ${status}${detail ? `: ${detail}` : ""}`, status)
  })
  const syncs = (state) => ofInstances(state.sync, "channel", "instances")
  changes(syncs(before), syncs(now), ofOne, ({ instance, name, resync }, was) => {
    if (was === undefined || (was.resync === null) === (resync === null)) return
    tell(
      now.at,
      `${name} of ${instance}: ${resync === null ? "in sync again" : "resync"}`,
      resync === null ? "good" : "warn"
    )
  })
}
