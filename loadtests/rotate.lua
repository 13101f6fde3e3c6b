-- Sends the prepared requests of a file in turn (the format is that of loadtests/bodies.py) and reports as one line.
-- Everything is built before the clock starts: while it runs, a request costs an index into a table.
-- Arguments after "--": the file, the number of the first request, and optionally "traced": then each request gets a
-- trace id that never comes again, as a client with OpenTelemetry sends it.

local requests, count, at = {}, 0, 0
local PLACE = string.rep("0", 32)

function init(args)
   local file = assert(io.open(args[1], "rb"))
   while true do
      local line = file:read("*l")
      if not line then break end
      local size, json_length = line:match("^(%d+) (%d+)$")
      local body = file:read(tonumber(size))
      local headers = { ["Content-Type"] = "application/json" }
      if json_length ~= "0" then
         headers["Content-Type"] = "application/octet-stream"
         headers["Inference-Header-Content-Length"] = json_length
      end
      if args[3] == "traced" then headers["traceparent"] = "00-" .. PLACE .. "-00f067aa0ba902b7-01" end
      count = count + 1
      requests[count] = wrk.format("POST", wrk.path, headers, body)
   end
   file:close()
   at = tonumber(args[2]) % count
   if args[3] == "traced" then trace() end
end

function request()
   at = at + 1
   if at > count then at = 1 end
   return requests[at]
end

function trace()
   local heads, tails, sent, began = {}, {}, 0, os.time()
   for i = 1, count do
      local from, to = requests[i]:find(PLACE, 1, true)
      heads[i], tails[i] = requests[i]:sub(1, from - 1), requests[i]:sub(to + 1)
   end
   request = function()
      at = at + 1
      if at > count then at = 1 end
      sent = sent + 1
      return heads[at] .. string.format("%016d%016d", began, sent) .. tails[at]
   end
end

function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      "\nmeasured requests=%d duration_us=%d bytes=%d p50_us=%d p90_us=%d p99_us=%d max_us=%d " ..
      "connect=%d read=%d write=%d status=%d timeout=%d\n",
      summary.requests, summary.duration, summary.bytes,
      latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max,
      e.connect, e.read, e.write, e.status, e.timeout))
end
