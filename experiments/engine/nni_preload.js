// Loaded into NNI's manager (node) by NODE_OPTIONS=--require; repairs what Python cannot reach. Nothing of NNI is
// changed on disk. Each repair looks for the defect first and does nothing if a later NNI no longer has it, or it is
// one that harms nobody then.
'use strict';
const fs = require('fs');
const http = require('http');
const Module = require('module');
const net = require('net');
const os = require('os');
const path = require('path');

const isManager = process.argv[1] && path.basename(process.argv[1]) === 'main.js';
// Trials inherit this environment; they are not to load this file.
delete process.env.NODE_OPTIONS;
if (process.env.NAS_NODE_OPTIONS) process.env.NODE_OPTIONS = process.env.NAS_NODE_OPTIONS;

// ---- who is heard ----

const EVERYWHERE = ['0.0.0.0', '::'];

// The server listens on every interface, without a password. The websocket shares its port.
function bindHost(host) {
    const listen = net.Server.prototype.listen;
    net.Server.prototype.listen = function (port, ...rest) {
        if (typeof port !== 'number' || typeof rest[0] === 'string') return listen.call(this, port, ...rest);
        if (!['127.0.0.1', 'localhost', ...EVERYWHERE].includes(host)) {
            // NNI talks to itself on loopback: there it must be heard, too.
            const inner = net.createServer(socket => this.emit('connection', socket));
            listen.call(inner, port, '127.0.0.1');
            this.on('close', () => inner.close());
        }
        return listen.call(this, port, host, ...rest.filter(argument => argument !== undefined));
    };
}

// Without a password, what a browser asks for on behalf of a foreign page must be told from what its user asks for:
// by the name the page has for us (it may have made its own name point here), and by where the page comes from.
function objection({ method, headers }, hosts) {
    const [, host] = /^(\[[0-9a-f:.]+\]|[^:@/\s]+)(?::\d+)?$/i.exec(headers.host || '') || [];
    if (!host || !known(host.toLowerCase().replace(/[[\]]/g, ''), hosts)) {
        return [403, `Host ${JSON.stringify(headers.host)} is not an address that this server was started with.`];
    }
    const home = ['http://', 'https://'].map(scheme => scheme + headers.host.toLowerCase());
    for (const origin of [headers.origin, headers['sec-websocket-origin']]) {
        if (origin !== undefined && !home.includes(origin.toLowerCase())) {
            return [403, `Origin ${JSON.stringify(origin)} is another site.`];
        }
    }
    const elsewhere = ['cross-site', 'same-site'].includes(headers['sec-fetch-site']);
    if (elsewhere && !(method === 'GET' && headers['sec-fetch-mode'] === 'navigate')) {
        return [403, 'Another site may link to this one and do nothing else.'];
    }
    // What a page can send without asking first (text/plain, a form) is not what NNI's own clients send.
    const type = headers['content-type'];
    const content = type !== undefined || Number(headers['content-length']) > 0 || headers['transfer-encoding'];
    if (['POST', 'PUT', 'PATCH'].includes(method) && content && !/^application\/json\b/i.test(type)) {
        return [415, `Content-Type ${JSON.stringify(type)} is not application/json.`];
    }
    return null;
}

function known(host, hosts) {
    if (hosts.includes(host)) return true;
    if (!hosts.some(each => EVERYWHERE.includes(each))) return false;
    const own = Object.values(os.networkInterfaces()).flat().map(each => each.address);
    return [os.hostname().toLowerCase(), ...own].includes(host);
}

// Other users of this machine reach loopback, too, and a job is a command that runs as us. Linux knows whose a
// connection is: the row of its other end in /proc/net/tcp. Who comes from another machine has no row there and is
// heard if --host lets them in; where the kernel does not even show our own end nobody can be told apart.
const NOT_THEIRS = 'Only the user who started this search is heard.';

function anotherUser({ localAddress, localPort, remoteAddress, remotePort }) {
    if (!process.getuid || remoteAddress === undefined) return false;
    const [theirs, ours] = [asKernelWrites(remoteAddress, remotePort), asKernelWrites(localAddress, localPort)];
    const rows = connections();
    if (!rows.some(row => row.from === ours && row.to === theirs && row.inode !== '0')) return false;
    const other = rows.find(row => row.from === theirs && row.to === ours);
    // Closed by its owner it is said to be root's, and has no inode.
    if (other) return other.inode === '0' || ![0, process.getuid()].includes(other.uid);
    const own = Object.values(os.networkInterfaces()).flat().map(each => each.address);
    const address = remoteAddress.replace(/^::ffff:/, '').replace(/%.*/, '');
    return address.startsWith('127.') || ['::1', ...own].includes(address);
}

function connections() {
    return ['/proc/net/tcp', '/proc/net/tcp6'].flatMap(file => {
        try {
            return fs.readFileSync(file, 'latin1').trim().split('\n').slice(1).map(line => {
                const [, from, to, , , , , uid, , inode] = line.trim().split(/\s+/);
                return { from: unmapped(from), to: unmapped(to), uid: Number(uid), inode };
            });
        } catch {
            return [];
        }
    });
}

// 127.0.0.1, 8083 -> 0100007F:1F93: words of 32 bits with their lowest byte first.
function asKernelWrites(address, port) {
    let bytes = [];
    if (address.includes('.')) {
        bytes = address.replace(/^.*:/, '').split('.').map(Number);
    } else {
        const [head, tail = []] = address.replace(/%.*/, '').split('::').map(half => half.split(':').filter(Boolean));
        const between = Array(8 - head.length - tail.length).fill('0');
        const words = [...head, ...between, ...tail].map(word => parseInt(word, 16));
        bytes = words.flatMap(word => [word >> 8, word & 255]);
    }
    const words = [];
    for (let i = 0; i < bytes.length; i += 4) words.push(...bytes.slice(i, i + 4).reverse());
    const hex = (number, digits) => number.toString(16).toUpperCase().padStart(digits, '0');
    return words.map(byte => hex(byte, 2)).join('') + ':' + hex(port, 4);
}

// What came over a socket of IPv6 is written as ::ffff:127.0.0.1.
function unmapped(end) {
    return end.replace(/^0{16}FFFF0000/, '');
}

// Before anything of NNI sees it: each request of any method, and each websocket.
function refuseForeigners(hosts) {
    const strangers = new WeakSet();
    const emit = http.Server.prototype.emit;
    http.Server.prototype.emit = function (event, request, answer) {
        if (event === 'connection' && anotherUser(request)) strangers.add(request);
        const asks = ['request', 'checkContinue', 'checkExpectation', 'upgrade', 'connect'].includes(event);
        const stranger = asks && strangers.has(request.socket) && [403, NOT_THEIRS];
        const [status, problem] = stranger || (asks && objection(request, hosts)) || [];
        if (!status) return emit.apply(this, arguments);
        const head = { 'Content-Type': 'text/plain', 'Connection': 'close', 'Content-Length': Buffer.byteLength(problem) };
        if (answer instanceof http.ServerResponse) {
            answer.writeHead(status, head).end(problem);
        } else {
            const lines = Object.entries(head).map(([name, value]) => `${name}: ${value}\r\n`).join('');
            answer.end(`HTTP/1.1 ${status} ${http.STATUS_CODES[status]}\r\n${lines}\r\n${problem}`);
        }
        return true;
    };
}

// GET /trial-file/ID/..%2F..%2Fetc%2Fpasswd returns any file the user can read, and so does ..%2F.. in place of ID.
const NO_FILE = 'Not a file of this trial.';

function ownFiles(V3asV1) {
    const get = V3asV1.prototype.getTrialFile;
    V3asV1.prototype.getTrialFile = async function (trial, file) {
        const name = { stdout: 'trial.stdout', stderr: 'trial.stderr' }[file] || String(file);
        try {
            const folder = fs.realpathSync(await this.v3.downloadTrialDirectory(trial));
            const wanted = fs.realpathSync(path.join(folder, name));
            if (wanted.startsWith(folder + path.sep) && fs.statSync(wanted).isFile()) {
                return await get.call(this, trial, file);
            }
        } catch {
            // It is not there, which nobody outside the folder is to know.
        }
        return NO_FILE;
    };
}

function ownTrials(NNIManager) {
    const get = NNIManager.prototype.getTrialFile;
    NNIManager.prototype.getTrialFile = async function (trial, file) {
        const ours = (await this.dataStore.listTrialJobs()).some(job => job.trialJobId === trial);
        const content = ours ? await get.call(this, trial, file) : NO_FILE;
        if (content !== NO_FILE) return content;
        const { NNIError, NNIErrorNames } = process.mainModule.require('common/errors');
        throw new NNIError(NNIErrorNames.NOT_FOUND, NO_FILE);
    };
}

// POST /tensorboard makes folders wherever its `trials` say, starts a shell with them, and the TensorBoard that it
// starts listens on every interface. There is nothing to see in it: trials keep their logs in the run folder.
function noTensorboard(NNITensorboardManager) {
    NNITensorboardManager.prototype.setTensorboardVersion = () => {};
    NNITensorboardManager.prototype.startTensorboardTask = async () => {
        throw new Error('TensorBoard is not started from here: loggers=[tensorboard], then tensorboard --logdir RUN_DIR');
    };
}

// /netron/ shows pages of another site as ours, which may then do what ours may; without Internet it ends the manager.
const NO_NETRON = {
    createProxyServer: () => ({ web: (_, answer) => answer.status(404).send('Netron is not served from here.') }),
};

// ---- trials ----

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

// A metric is passed on when it has been written to the database. On a busy disk its trial's end overtakes it, and one
// that comes before its trial's start has been written is dropped: either way the trial "reported no result".
const untold = new Map();  // trial -> when its metrics have been passed on
const over = new Set();  // trials whose end the manager has seen

function metricsAfterTheStart(NNIManager) {
    const tell = NNIManager.prototype.onTrialJobMetrics;
    NNIManager.prototype.onTrialJobMetrics = function (metric) {
        const tellNow = async () => {
            while (!this.trialJobs.has(metric.id) && !over.has(metric.id)) {
                await new Promise(resolve => setTimeout(resolve, 20));
            }
            return tell.call(this, metric);
        };
        const told = (untold.get(metric.id) || Promise.resolve()).then(tellNow);
        untold.set(metric.id, told.catch(() => {}));  // the caller sees what went wrong
        return told;
    };
}

// A copy: the manager waits for the database and looks at the status once more.
function metricsBeforeTheEnd(V3asV1) {
    const get = V3asV1.prototype.getTrialJob;
    V3asV1.prototype.getTrialJob = async function (id) {
        const job = { ...await get.call(this, id) };
        if (['WAITING', 'RUNNING', 'UNKNOWN'].includes(job.status)) return job;
        await untold.get(id);
        untold.delete(id);
        over.add(id);
        return job;
    };
}

// A trial that finds no room is tried again at once, for ever: the manager has time for nothing else.
function withPatience(V3asV1) {
    const start = V3asV1.prototype.start;
    V3asV1.prototype.start = function () {
        const create = this.v3.createTrial.bind(this.v3);
        this.v3.createTrial = async (...args) => {
            let trial = null;
            try {
                trial = await create(...args);
            } finally {
                if (trial === null) await new Promise(resolve => setTimeout(resolve, 1000));
            }
            return trial;
        };
        return start.call(this);
    };
}

// NNI counts the GPUs of the machine, not those that CUDA_VISIBLE_DEVICES leaves us, and where it has one it gives
// none away (`gpuNumber >= gpus.length`). On this machine we give each trial the GPU that fewest trials have.
function handOutGpus(TaskSchedulerClient) {
    const gpus = (process.env.NAS_GPUS || '').split(',').filter(Boolean);
    if (gpus.length === 0) return;
    const trials = new Map();  // trial -> its GPU
    const load = gpu => Array.from(trials.values()).filter(each => each === gpu).length;
    Object.assign(TaskSchedulerClient.prototype, {
        start: async () => {},
        shutdown: async () => trials.clear(),
        schedule: async trial => {
            const gpu = gpus.reduce((best, each) => (load(each) < load(best) ? each : best));
            trials.set(trial, gpu);
            return { CUDA_VISIBLE_DEVICES: gpu, NAS_DEVICE: 'cuda' };
        },
        release: async trial => { trials.delete(trial); },
        onUtilityUpdate: () => {},
    });
}

// The scheduler of another machine runs there, as NNI left it: ask it for a little less than the whole GPU, of which
// it does not give away the last one, but two trials will not fit.
function almostWholeGpu(RemoteTrialKeeper) {
    const create = RemoteTrialKeeper.prototype.createTrial;
    RemoteTrialKeeper.prototype.createTrial = function (options) {
        return create.call(this, options.gpuNumber === 1 ? { ...options, gpuNumber: 0.999 } : options);
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

const REPAIRS = {
    V3asV1: [ownParameters, ownFiles, markBeforeStopping, metricsBeforeTheEnd, withPatience],
    NNIManager: [quickly, ownTrials, metricsAfterTheStart],
    NNITensorboardManager: [noTensorboard],
    TaskSchedulerClient: [handOutGpus],
    RemoteTrialKeeper: [almostWholeGpu],
};

if (isManager) {
    const host = process.env.NAS_BIND_HOST || '127.0.0.1';
    bindHost(host);
    refuseForeigners([...(process.env.NAS_HOSTS || 'localhost,127.0.0.1,::1').split(','), host]);
    if (process.env.NAS_PARENT) dieWith(Number(process.env.NAS_PARENT));
    const seen = new WeakSet();
    const load = Module._load;
    Module._load = function (request) {
        const loaded = load.apply(this, arguments);
        if (request === 'http-proxy') return NO_NETRON;
        for (const name in loaded && typeof loaded === 'object' ? REPAIRS : {}) {
            const type = loaded[name];
            if (typeof type !== 'function' || seen.has(type)) continue;
            seen.add(type);
            REPAIRS[name].forEach(repair => repair(type));
        }
        return loaded;
    };
}
