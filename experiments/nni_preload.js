// Loaded into NNI's manager (node) by NODE_OPTIONS=--require; repairs what Python cannot reach. Nothing of NNI is
// changed on disk. Each repair looks for the defect first and does nothing if a later NNI no longer has it.
'use strict';
const Module = require('module');
const net = require('net');
const path = require('path');

const isManager = process.argv[1] && path.basename(process.argv[1]) === 'main.js';
// Trials inherit this environment; they are not to load this file.
delete process.env.NODE_OPTIONS;
if (process.env.NAS_NODE_OPTIONS) process.env.NODE_OPTIONS = process.env.NAS_NODE_OPTIONS;

// The server listens on every interface, without a password. The websocket shares its port.
function bindHost(host) {
    const listen = net.Server.prototype.listen;
    net.Server.prototype.listen = function (port, ...rest) {
        if (typeof port !== 'number' || typeof rest[0] === 'string') return listen.call(this, port, ...rest);
        if (!['127.0.0.1', 'localhost', '0.0.0.0', '::'].includes(host)) {
            // NNI talks to itself on loopback: there it must be heard, too.
            const inner = net.createServer(socket => this.emit('connection', socket));
            listen.call(inner, port, '127.0.0.1');
            this.on('close', () => inner.close());
        }
        return listen.call(this, port, host, ...rest.filter(argument => argument !== undefined));
    };
}

// When the search is killed, the manager, its port and the running trial stay behind for ever.
function dieWith(parent) {
    setInterval(() => {
        if (process.ppid === parent) return;
        process.kill(process.pid, 'SIGTERM');
        setTimeout(() => process.exit(1), 8000).unref();
    }, 500).unref();
}

// All parameters wait in one queue and whichever trial asks first gets the oldest: at a concurrency of two a trial
// may run another trial's architecture. Give each trial its own as soon as it has a name, before it can ask.
function ownParameters(V3asV1) {
    const submit = V3asV1.prototype.submitTrialJob;
    if (!String(submit).includes('this.parameters.push(')) return;
    V3asV1.prototype.submitTrialJob = async function (form) {
        const trial = await submit.call(this, form);
        const index = this.parameters.indexOf(form.hyperParameters.value);
        if (index >= 0) {
            this.parameters.splice(index, 1);
            this.allocatedParameters.set(trial.id, form.hyperParameters.value);
        }
        return trial;
    };
}

// A trial that is stopped for taking too long is marked so only after it has ended, as cancelled by the user.
function markBeforeStopping(V3asV1) {
    const cancel = V3asV1.prototype.cancelTrialJob;
    V3asV1.prototype.cancelTrialJob = async function (id, isEarlyStopped) {
        if (this.trialJobs[id]) this.trialJobs[id].isEarlyStopped = Boolean(isEarlyStopped);
        return cancel.call(this, id, isEarlyStopped);
    };
}

// GET /trial-file/ID/..%2F..%2Fetc%2Fpasswd returns any file the user can read.
function ownFiles(V3asV1) {
    const get = V3asV1.prototype.getTrialFile;
    V3asV1.prototype.getTrialFile = async function (trial, file) {
        const name = path.normalize(String(file));
        if (path.isAbsolute(name) || name.split(path.sep).includes('..')) return 'Not a file of this trial.';
        return get.call(this, trial, file);
    };
}

// Twice a second is slow for trials that take a tenth of one.
function quickly(NNIManager) {
    const init = NNIManager.prototype.initTrainingService;
    NNIManager.prototype.initTrainingService = async function (config) {
        const service = await init.call(this, config);
        this.pollInterval = Math.min(this.pollInterval, 0.1);
        return service;
    };
}

if (isManager) {
    bindHost(process.env.NAS_BIND_HOST || '127.0.0.1');
    if (process.env.NAS_PARENT) dieWith(Number(process.env.NAS_PARENT));
    const seen = new WeakSet();
    const load = Module._load;
    Module._load = function () {
        const loaded = load.apply(this, arguments);
        const repairs = loaded && { V3asV1: [ownParameters, ownFiles, markBeforeStopping], NNIManager: [quickly] };
        for (const name in repairs) {
            const type = typeof loaded === 'object' && loaded[name];
            if (typeof type !== 'function' || seen.has(type)) continue;
            seen.add(type);
            repairs[name].forEach(repair => repair(type));
        }
        return loaded;
    };
}
